// biome-ignore-all lint/suspicious/noTemplateCurlyInString: that is how Dockerfiles write variables

import { describe, expect, it } from "vitest";
import { type DockerfileOptions, Template } from "./template.ts";

const spec = (text: string, options?: DockerfileOptions) => Template.fromDockerfile(text, options).toSpec();
const steps = (text: string, options?: DockerfileOptions) => spec(`FROM base\n${text}`, options).buildSteps ?? [];
const warnings = (text: string, buildArgs = {}) => {
  const told: string[] = [];
  spec(text, { buildArgs, onWarning: (each) => told.push(each) });
  return told;
};

describe("a Dockerfile", () => {
  it("becomes steps in the order of its instructions", () => {
    const text = `# syntax=docker/dockerfile:1
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt ./
RUN pip install \\
    # the comment is no part of it

    --no-cache-dir -r requirements.txt
COPY . .
ENV PORT=8080 MODE="a b"
USER app
CMD ["python", "app.py"]
`;
    expect(spec(text)).toEqual({
      image: "python:3.12-slim",
      buildSteps: [
        { type: "workdir", workdir: "/app" },
        { type: "copy", source: "requirements.txt", dest: "./" },
        { type: "run", run: "pip install     --no-cache-dir -r requirements.txt" },
        { type: "copy", source: ".", dest: "." },
        { type: "env", envName: "PORT", envValue: "8080" },
        { type: "env", envName: "MODE", envValue: "a b" },
        { type: "user", user: "app" },
      ],
      command: ["python", "app.py"],
    });
  });

  it("may have Windows' line ends, a byte order mark, small letters and another escape character", () => {
    expect(spec("\uFEFF# escape=`\r\nfrom base as main\r\nrun a `\r\n  && b c:\\d\r\n")).toEqual({
      image: "base",
      buildSteps: [{ type: "run", run: "a   && b c:\\d" }],
    });
  });

  it.each([
    ["ENV A=1", [["A", "1"]]],
    ["ENV A=1 B='x $y' C=\"x y\"", [["A", "1"], ["B", "x $y"], ["C", "x y"]]], // biome-ignore format: one case a line
    ["ENV A some value = b", [["A", "some value = b"]]],
    ["ENV A=x\\ y", [["A", "x y"]]],
    ["ENV A= B=2", [["A", ""], ["B", "2"]]], // biome-ignore format: one case a line
  ])("%s sets %j", (text, pairs) => {
    expect(steps(text)).toEqual(pairs.map(([envName, envValue]) => ({ type: "env", envName, envValue })));
  });

  it("puts variables of ARG and ENV where Docker does, and leaves those of RUN to the shell", () => {
    const text = [
      "ARG DIR=/srv NAME",
      "ENV HOME_DIR=$DIR/${NAME:-app}${UNSET:+x}",
      "WORKDIR ${HOME_DIR}",
      "COPY src/$DIR \\$DIR/",
      "USER u${NAME:-1}",
    ];
    expect(steps(`${text.join("\n")}\nRUN echo $HOME_DIR`)).toEqual([
      { type: "env", envName: "HOME_DIR", envValue: "/srv/app" },
      { type: "workdir", workdir: "/srv/app" },
      { type: "copy", source: "src//srv", dest: "$DIR/" },
      { type: "user", user: "u1" },
      { type: "run", run: "export DIR=/srv; echo $HOME_DIR" },
    ]);
  });

  it("takes values for its ARGs from outside, also for those in front of FROM", () => {
    const text = "ARG TAG=3.12\nFROM python:$TAG\nARG TAG\nARG EXTRA=none\nRUN install $EXTRA";
    expect(spec(text)).toMatchObject({ image: "python:3.12", buildSteps: [{ run: "export TAG=3.12 EXTRA=none; install $EXTRA" }] });
    expect(spec(text, { buildArgs: { TAG: "3.13", EXTRA: "it's" } })).toMatchObject({
      image: "python:3.13",
      buildSteps: [{ run: "export TAG=3.13 EXTRA='it'\\''s'; install $EXTRA" }],
    });
    expect(warnings(text, { OTHER: "1" })).toEqual(["build argument OTHER: no ARG asks for it"]);
  });

  it("lets ENV win over an ARG of the same name", () => {
    expect(steps("ARG A=1\nENV A=2\nARG A=3\nRUN x")).toEqual([
      { type: "env", envName: "A", envValue: "2" },
      { type: "run", run: "x" },
    ]);
  });

  it("leaves the variables of the image to the server, which knows them", () => {
    expect(steps('ENV PATH="/opt/venv/bin:$PATH"\nENV B=${PATH}:x')).toEqual([
      { type: "env", envName: "PATH", envValue: "/opt/venv/bin:${PATH}", expand: true },
      { type: "env", envName: "B", envValue: "${PATH}:x", expand: true },
    ]);
    expect(() => steps("WORKDIR $APP_HOME")).toThrow(
      expect.objectContaining({ errorCause: "line 2: WORKDIR: $APP_HOME needs a variable that the file does not set" }),
    );
  });

  it("gives a RUN in the form of a list, and one of another SHELL, to the shell as quoted words", () => {
    expect(steps('RUN ["touch", "a b"]\nSHELL ["/bin/bash", "-o", "pipefail", "-c"]\nRUN a | b')).toEqual([
      { type: "run", run: "touch 'a b'" },
      { type: "run", run: "/bin/bash -o pipefail -c 'a | b'" },
    ]);
  });

  it.each([
    ['CMD ["python", "app.py"]', ["python", "app.py"]],
    ["CMD python app.py", ["python", "app.py"]],
    ["CMD python app.py --port $PORT", ["/bin/sh", "-c", "python app.py --port $PORT"]],
    ["CMD A=1 python app.py", ["/bin/sh", "-c", "A=1 python app.py"]],
    ['ENTRYPOINT ["python"]\nCMD ["app.py"]', ["python", "app.py"]],
    ['CMD ["app.py"]\nENTRYPOINT ["python"]', ["python", "app.py"]],
    ['ENTRYPOINT python app.py\nCMD ["ignored"]', ["python", "app.py"]],
    ["CMD a\nCMD b", ["b"]],
    ["RUN x", undefined],
  ])("%j starts %j", (text, command) => {
    expect(spec(`FROM base\n${text}`).command).toEqual(command);
  });

  it("copies each of several sources", () => {
    expect(steps('COPY --link a b c/\nADD ["with space", "/x/"]')).toEqual([
      { type: "copy", source: "a", dest: "c/" },
      { type: "copy", source: "b", dest: "c/" },
      { type: "copy", source: "with space", dest: "/x/" },
    ]);
  });

  it("tells of every instruction that has no effect", () => {
    const ignored = ["EXPOSE 80", "LABEL a=b", "VOLUME /x", "STOPSIGNAL 9", "HEALTHCHECK NONE", "MAINTAINER m", "ONBUILD RUN x"];
    expect(warnings(`FROM base\n${ignored.join("\n")}`)).toEqual(
      ignored.map((line, index) => expect.stringMatching(`^line ${index + 2}: ${line.split(" ")[0]} has no effect: `)),
    );
    expect(warnings("FROM --platform=linux/amd64 base\nRUN --mount=type=cache,target=/c x")).toEqual([
      expect.stringContaining("--platform=linux/amd64"),
      expect.stringContaining("--mount=type=cache"),
    ]);
  });

  it.each([
    ["", "line 1: FROM: the file has no FROM"],
    ["RUN x", "line 1: RUN: it stands in front of FROM"],
    ["FROM a\nRUN x\n\nFROM b AS c", "line 4: FROM: it begins a second stage, and builds here have one"],
    ["FROM scratch", "line 1: FROM: scratch has no files, and a sandbox needs a shell"],
    ["FROM $NONE", "line 1: FROM: $NONE is empty"],
    ["FROM a b", "line 1: FROM: it is not `FROM image` or `FROM image AS name`"],
    ["FROM a\nRUN <<EOF\nx\nEOF", "line 2: RUN: here-documents (<<) are not supported"],
    ["FROM a\nRUN cat <<-'END' > f\nx\nEND", "line 2: RUN: here-documents (<<) are not supported"],
    ["FROM a\nCOPY <<F /x\nF", "line 2: COPY: here-documents (<<) are not supported"],
    ["FROM a\nRUN --mount=type=secret,id=x y", "line 2: RUN: --mount=type=secret,id=x is not supported"],
    ["FROM a\nCOPY --from=b /x /y", "line 2: COPY: --from=b is not supported"],
    ["FROM a\nCOPY --chown=1:1 x /y", "line 2: COPY: --chown=1:1 is not supported"],
    ["FROM a\nCOPY x", "line 2: COPY: it names no source and target"],
    ["FROM a\nCOPY x y z", "line 2: COPY: z gets several sources and does not end in /"],
    ["FROM a\nADD https://example.com/x /x", "line 2: ADD: https://example.com/x is not a file of the context"],
    ["FROM a\nADD x.tar.gz /x", "line 2: ADD: x.tar.gz would be unpacked by Docker, which is not supported"],
    ["FROM a\nENV A=1 B", "line 2: ENV: B is not NAME=value"],
    ["FROM a\nENV A='x", "line 2: ENV: a quote is not closed"],
    ["FROM a\nENV A=${B%x}", "line 2: ENV: ${B%x} is a substitution that is not supported"],
    ["FROM a\n\n# c\nWORKDIR", "line 4: WORKDIR: nothing follows it"],
    ["FROM a\nRUM x", "line 2: RUM: there is no such instruction"],
    ["FROM a\nSHELL /bin/bash", "line 2: SHELL: it is not a JSON list of words"],
    ["# escape=x\nFROM a", "line 1: # escape: x is not an escape character"],
  ])("%j is refused: %s", (text, errorCause) => {
    expect(() => spec(text)).toThrow(
      expect.objectContaining({ code: "build_failed", errorCause, remediation: expect.stringMatching(/\.$/) }),
    );
  });

  it("with a quote that is never closed is refused at once, whatever follows it", () => {
    for (const rest of ["\\".repeat(10_001), "\\'".repeat(5000), "x ".repeat(10_000)]) {
      expect(() => steps(`ENV A="${rest}`)).toThrow(expect.objectContaining({ errorCause: "line 2: ENV: a quote is not closed" }));
    }
  });

  it("may use here-strings and shifts of its shell", () => {
    expect(steps("RUN bash -c 'cat <<< text; echo $((1<<3))'")).toHaveLength(1);
  });
});
