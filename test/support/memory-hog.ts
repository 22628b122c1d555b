/**
 * A command that takes 384 MiB, for sandboxes that have less than 256. Each of its programs takes its part within one call of the kernel and uses
 * no page of its own meanwhile: where programs use many, a virtual machine reads those from its disk again and again before it ends
 * (docs/microvm.md), for longer than a test waits. A kernel refuses at once a part that is larger than all its memory.
 */
export const memoryHog = "for n in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/dev/null bs=48M & done; wait";
