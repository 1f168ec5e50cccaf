"""Print what a TPM measures of a unified kernel image (UKI), as JSON.

Authenticode hashes of the UKI, PCR 4 of a machine whose firmware starts nothing else, and PCR 12 of a boot
without credentials, add-ons and another command line. vmsnix computes the same from the disk, and refuses an
image with other values.

Sources: Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash"; TCG PC
Client Platform Firmware Profile, 3.3.4.5 (PCR[4]).
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

EVENTS = b"Calling EFI Application from Boot Option", bytes(4)  # before the firmware starts the UKI


def hashed_parts(pe: bytes) -> list[bytes]:
    """Return the file without its checksum, certificate table, and that table's entry in the header."""
    (header,) = struct.unpack_from("<I", pe, 60)
    sections, optional_bytes = struct.unpack_from("<6xH12xH", pe, header)
    optional = header + 24
    (end_of_headers,) = struct.unpack_from("<I", pe, optional + 60)
    entry = optional + 144  # PE32+, as for all 64-bit machines
    (certificate_bytes,) = struct.unpack_from("<I", pe, entry + 4)
    table = [
        struct.unpack_from("<16xII", pe, optional + optional_bytes + 40 * number)
        for number in range(sections)
    ]
    bodies = [(start, start + size) for size, start in table if size]
    end = end_of_headers + sum(stop - start for start, stop in bodies)
    ranges = [(0, optional + 64), (optional + 68, entry), (entry + 8, end_of_headers), *sorted(bodies)]
    return [pe[start:stop] for start, stop in [*ranges, (end, len(pe) - certificate_bytes)]]


pe = Path(sys.argv[1]).read_bytes()
values = {}
for bank in ("sha256", "sha384"):
    uki = hashlib.new(bank, b"".join(hashed_parts(pe))).digest()
    zeros = pcr4 = bytes(len(uki))
    for digest in (*(hashlib.new(bank, event).digest() for event in EVENTS), uki):
        pcr4 = hashlib.new(bank, pcr4 + digest).digest()
    values |= {f"uki_{bank}": uki.hex(), f"pcr4_{bank}": pcr4.hex(), f"pcr12_{bank}": zeros.hex()}
json.dump(values, sys.stdout)
