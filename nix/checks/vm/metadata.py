"""EC2's instance metadata service with one page, the user data in the file on the command line."""

import http.server
import pathlib
import sys

USER_DATA = pathlib.Path(sys.argv[1]).read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """The answers to requests."""

    def _answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        """Answer a request for a session token."""
        self._answer(200, b"token")

    def do_GET(self):
        """Answer a request for a page."""
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401)
        elif self.path == "/latest/user-data":
            self._answer(200, USER_DATA)
        else:
            self._answer(404)


http.server.ThreadingHTTPServer(("169.254.169.254", 80), Handler).serve_forever()
