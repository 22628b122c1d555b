// The Template builder: a description of what a template is built from.
import { defaultPoolName, Template } from "@mitos/sdk";

const template = new Template()
  .fromImage("python:3.12")
  .workdir("/app")
  .copy("app/", "/app")
  .env("PORT", "8080")
  .run("pip install -r requirements.txt")
  .setStart("python app.py")
  .cpu("2")
  .memory("1Gi");
console.log(JSON.stringify(template.toSpec()));
console.log(JSON.stringify(template.toTemplate("app").metadata), defaultPoolName("python:3.12"));
