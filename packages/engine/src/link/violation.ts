/** A rule of docs/link.md that the other end broke. It ends the link session; the machine is not to be trusted or served any more. */
export class LinkViolation extends Error {
  override readonly name = "LinkViolation";
}
