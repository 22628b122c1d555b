import type { ServerResponse } from "node:http";
import type { MitosError } from "@mitos/protocol";
import type { AnyRequest } from "../http/guard.ts";
import { type AnyResponse, retryAfter } from "../http/plain.ts";

const refreshSeconds = 2;

/** Somebody looks at a program that may be about to start: a page that looks again serves them better than an error. */
export function wantsPage({ headers, method }: AnyRequest, error: MitosError): boolean {
  return error.code === "unavailable" && (method === "GET" || method === "HEAD") && /\btext\/html\b/.test(headers.accept ?? "");
}

/** What is missing and what to do, in a page that tries again by itself. */
export function sendWaitingPage(response: AnyResponse, error: MitosError, headOnly: boolean): void {
  const [message, cause, remedy] = [
    error.detail.message ?? error.entry.message,
    error.detail.cause ?? "",
    error.detail.remediation ?? error.entry.remediation,
  ].map(escapeHtml);
  const body = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="${refreshSeconds}">
<title>${message}</title>
<style>body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem; color-scheme: light dark }</style>
<h1>${message}</h1>
<p>${remedy}</p>
<p><small>${cause}. This page tries again every ${refreshSeconds} seconds.</small></p>
</html>
`;
  (response as ServerResponse).writeHead(error.entry.status, {
    "content-type": "text/html; charset=utf-8",
    "content-length": String(Buffer.byteLength(body)),
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    ...retryAfter(error),
  });
  response.end(headOnly ? "" : body);
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
