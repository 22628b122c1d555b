const codes = { red: 31, green: 32, yellow: 33, bold: 1, dim: 2 } as const;
export type Style = keyof typeof codes;

/** Coloured on a terminal that knows colours and whose user has not said no (NO_COLOR, TERM=dumb), plain everywhere else. */
export function paint(stream: NodeJS.WriteStream, style: Style, text: string): string {
  const plain = !stream.isTTY || Boolean(process.env.NO_COLOR) || process.env.TERM === "dumb";
  return plain ? text : `\x1b[${codes[style]}m${text}\x1b[0m`;
}
