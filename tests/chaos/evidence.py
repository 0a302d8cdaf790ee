"""Whether any decode came without a receipt, from what the decode engines and the sidecars wrote down, not from the router."""

import json


def lines(path):
    """The JSON lines of a file, and how many are none."""
    found, unreadable = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            unreadable += 1
    return found, unreadable


def judge(request_logs, receipt_logs):
    """A decode is covered by a receipt, given earlier, that names its virtual request and its rank."""
    receipts, unreadable = {}, 0
    for path in receipt_logs:
        found, bad = lines(path)
        unreadable += bad
        for line in found:
            key = line["virtual_engine_id"], line["request_id"]
            if line.get("withdrawn"):
                receipts.pop(key, None)
            else:
                receipts[key] = line
    decodes, uncovered = 0, []
    for path in request_logs:
        found, bad = lines(path)
        # The last line of an engine that was killed may be half a line.
        unreadable += bad
        for line in found:
            if line["kind"] != "decode":
                continue
            decodes += 1
            receipt = receipts.get((line.get("remote_engine_id"), line.get("remote_request_id")))
            if not receipt or receipt["dp_rank"] != line["dp_rank"] or receipt["at_us"] > line["at_us"]:
                uncovered.append(line)
    return {"receipts": len(receipts), "decodes": decodes, "uncovered": uncovered, "unreadable_lines": unreadable}
