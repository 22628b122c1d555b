/** What the bench's pictures are made of: SVG that needs nothing but itself. */

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** Read out to whoever does not see it. */
  readonly title: string;
  /** In px. */
  readonly fontSize: number;
}

export function svg({ width, height, title, fontSize }: Picture, content: readonly string[]): string {
  const style = `font-family:system-ui,sans-serif;font-size:${fontSize}px;fill:#374151`;
  const head = `<title>${escaped(title)}</title><rect width="100%" height="100%" fill="#fff"/>`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" style="${style}">${head}${content.join("")}</svg>\n`;
}

export function svgText(x: number, y: number, content: string, style = ""): string {
  return `<text x="${round(x)}" y="${round(y)}" style="${style}">${escaped(content)}</text>`;
}

export function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
