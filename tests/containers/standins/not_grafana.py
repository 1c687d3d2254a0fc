#!/usr/local/bin/python
"""Not Grafana: serves /api/health while all that Grafana needs is there for its user; /found tells what."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def found() -> dict[str, object]:
    """Raises OSError for what is missing or closed."""
    data = Path("/var/lib/grafana/probe")
    data.write_text("grafana keeps its database here")
    provisioning = Path(os.environ["GF_PATHS_PROVISIONING"])
    return {
        "not": "grafana",
        "user": os.getuid(),
        "password_characters": len(Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip()),
        "provisioning": {str(file): file.read_text() for file in sorted(provisioning.rglob("*.yml"))},
        "dashboards": sorted(
            json.loads(file.read_text())["uid"] for file in Path("/var/lib/grafana/dashboards").iterdir()
        ),
        "prometheus": os.environ["PROMETHEUS_URL"],
        "settings": {name: value for name, value in os.environ.items() if name.startswith("GF_")},
    }


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            status, body = (200, found()) if self.path in ("/api/health", "/found") else (404, {})
        except OSError as error:
            status, body = 503, {"missing": str(error)}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *words: object) -> None:
        pass


ThreadingHTTPServer(("", 3000), Answer).serve_forever()
