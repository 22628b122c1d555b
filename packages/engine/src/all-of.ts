/** What all of them give. Each has ended when this throws what the first of them has thrown. */
export async function allOf<T extends readonly unknown[]>(works: readonly [...T]): Promise<{ [K in keyof T]: Awaited<T[K]> }> {
  const results = await Promise.allSettled(works);
  for (const result of results) if (result.status === "rejected") throw result.reason;
  return Promise.all(works) as Promise<{ [K in keyof T]: Awaited<T[K]> }>;
}
