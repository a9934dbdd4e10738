"""A name server of a few records: ``python -m tests.exporter.archive.name_server ADDRESS 'NAME TYPE DATA' ...``."""

from __future__ import annotations

import socket
import sys

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset


def main() -> None:
    records = {}
    for line in sys.argv[2:]:
        name, kind, data = line.split(" ", 2)
        records[name, kind] = dns.rrset.from_text(name, 60, "IN", kind, data)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((sys.argv[1], 53))
        print("ready", flush=True)  # noqa: T201 - what its starter waits for
        while True:
            data, sender = listening.recvfrom(4096)
            query = dns.message.from_wire(data)
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.AA
            question = query.question[0]
            found = records.get((question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)))
            if found is not None:
                answer.answer.append(found)
            listening.sendto(answer.to_wire(), sender)


if __name__ == "__main__":
    main()
