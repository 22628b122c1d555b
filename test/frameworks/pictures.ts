/** A PNG of one pixel, as base64. */
export const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/** Python that displays it. */
export const showPng = `
import base64
class Picture:
    def _repr_png_(self): return base64.b64decode("${png}")
Picture()
`;
