"""Asks the HTTP server on the given port of this machine's loopback, after giving it new content if there is a second argument."""

import http.client
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
if len(sys.argv) > 2:
    connection.request("PUT", "/", sys.argv[2].encode())
else:
    connection.request("GET", "/")
print(connection.getresponse().read().decode())
