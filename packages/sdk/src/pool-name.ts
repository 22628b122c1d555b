const slugCharactersMax = 40;

/**
 * The name of the pool that an image without a pool of its own gets. Two images may share one (`python:3.11` and `python-3.11`):
 * whoever uses it compares the image.
 */
export function defaultPoolName(image: string): string {
  const slug = image
    .toLowerCase()
    .replaceAll(/[/:]/g, "-")
    .replaceAll(/[^a-z0-9.-]+/g, "-")
    .slice(0, slugCharactersMax)
    .replace(/^[-.]+/, "")
    .replace(/[-.]+$/, "");
  return `mitos-default-${slug}`;
}
