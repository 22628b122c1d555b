/** Where programs start, and what relative paths begin at. */
export const workDir = "/workspace";

export function inWorkDir(path: string): string {
  return path.startsWith("/") ? path : `${workDir}/${path}`;
}
