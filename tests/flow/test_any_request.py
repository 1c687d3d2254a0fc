"""Schemathesis asks whatever /openapi.json allows, and much that it does not: nobody ever meets a mistake of ours.

What is answered keeps to the document: its statuses, its kinds of content, its shapes. The long form is
`./deskmate test --any-requests N`.
"""

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fake_worker import FakeWorker
from tests.flow.conformance import HELLO, caller
from tests.gateway_process import GatewayProcess

PROGRAM = Path(sys.executable).parent / "schemathesis"
SECONDS = 20  # of the short form, which asks the same each time
SECONDS_A_RUN = 300  # of the long one: each run begins with the same cases at the limits
LEAST = 100  # cases in the short form, on the slowest machine
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


async def test_no_request_of_any_form_meets_a_mistake_of_ours(
    ready: GatewayProcess, scripted: FakeWorker, person: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    wanted = pytestconfig.getoption("--any-requests")
    key = await ready.key(person)
    done = 0
    while done < max(wanted, 1):
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(await known(ready, key)))
        how = ("--max-time", f"{SECONDS_A_RUN}") if wanted else ("--max-time", f"{SECONDS}", "--seed", "1")
        done += await asked(ready.url, key, file, *how)
        print(f"{done} requests of any form, none met a mistake", flush=True)
    assert done >= LEAST


async def asked(url: str, key: str, file: Path, *how: str) -> int:
    """How many requests were made. Raises for the first that was answered wrongly."""
    command = [str(PROGRAM), "run", str(file), "--url", url, "--header", f"Authorization: Bearer {key}", *how]
    command += ["--checks", CHECKS, "--phases", "coverage,fuzzing", "--request-timeout", "60"]
    process = await asyncio.create_subprocess_exec(*command, cwd=file.parent, stdout=asyncio.subprocess.PIPE)
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    found = re.search(r"([\d,]+) generated, ([\d,]+) passed", output)
    assert found is not None and found[1] == found[2], output
    return int(found[1].replace(",", ""))


async def known(gateway: GatewayProcess, key: str) -> Mapping[str, Any]:
    """The document with what there is: the model, and the ids of this person's. Else every answer would be 404.

    A stream is left without its shape: Schemathesis reads an event's frame where the document says its data.
    """
    async with caller(gateway, key) as http:
        document = (await http.get("/openapi.json")).json()
        ids = {"models": "fake"}
        ids["conversations"] = (await http.post("/v1/conversations", json={"items": HELLO})).json()["id"]
        ids["responses"] = (await http.post("/v1/responses", json={"input": "hello"})).json()["id"]
        items = (await http.get(f"/v1/conversations/{ids['conversations']}/items")).json()
    for shape in document["components"]["schemas"].values():
        if "model" in shape.get("properties", {}):
            shape["properties"]["model"] = {"type": "string", "enum": ["fake"]}
    for path, operations in document["paths"].items():
        there = {"id": ids.get(path.split("/")[2]), "item": items["data"][0]["id"]}
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["in"] == "path":
                    parameter["schema"] = {"enum": [there[parameter["name"]], "none"]}
            content = operation["responses"]["200"]["content"]
            content |= {"text/event-stream": {}} if "text/event-stream" in content else {}
    return document
