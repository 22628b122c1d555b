/** Standard base64 with padding, on every runtime: the built-in where there is one, else atob and btoa. */

interface Uint8ArrayWithBase64 {
  fromBase64?: (text: string) => Uint8Array<ArrayBuffer>;
}

export function decodeBase64(text: string): Uint8Array<ArrayBuffer> {
  const native = (Uint8Array as Uint8ArrayWithBase64).fromBase64;
  if (native) return native.call(Uint8Array, text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  // Uint8Array.from with a function goes over the characters by their iterator, many times slower: output comes this way.
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

export function encodeBase64(bytes: Uint8Array): string {
  const native = (bytes as { toBase64?: () => string }).toBase64;
  if (native) return native.call(bytes);
  let binary = "";
  // fromCharCode takes its input as arguments, of which an engine allows some ten thousands.
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(binary);
}
