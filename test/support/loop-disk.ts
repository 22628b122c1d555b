import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";

/**
 * A real file system of that size over the folder, for root: on tmpfs, even to read where nobody has written yet takes room, and who maps files there
 * is killed for want of it.
 *
 * @param size - as of truncate(1)
 * @returns takes it away again
 */
export function mountLoopDisk(dir: string, size: string): () => void {
  const image = `${dir}.ext4`;
  execFileSync("truncate", ["-s", size, image]);
  execFileSync("mke2fs", ["-q", "-t", "ext4", "-m", "0", "-F", image], { env: { PATH: "/usr/sbin:/sbin:/usr/bin:/bin" } });
  execFileSync("mount", ["-o", "loop", image, dir]);
  return () => {
    execFileSync("umount", [dir]);
    rmSync(image);
  };
}
