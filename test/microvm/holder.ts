/** Shell, to talk to a program that holds memory and says on demand whether all of it is as it has left it. What goes wrong in it is told. */

const orItsErrors = "test ! -s /root/errors || { cat /root/errors; exit 1; }";

export const untilItHolds = `while [ ! -e /root/ready ]; do sleep 0.02; ${orItsErrors}; done`;
export const isAllAsItWas = `touch /root/ask; while [ ! -e /root/answer ]; do sleep 0.02; ${orItsErrors}; done; cat /root/answer; rm /root/answer`;
