"""A boot sector that says a line on the first serial port and halts: the least that can be seen to boot.

The 77 bytes of code below are 16-bit x86, made with the GNU assembler from the listing beside them. The BIOS
loads the sector to 0x7C00 and jumps there. COM1 is set to 115200 baud, 8 data bits, no parity, one stop bit:
what EC2's serial console expects. Waiting for the port is bounded, so a machine without one halts too.
"""

from __future__ import annotations

import struct

CODE = bytes.fromhex(
    "fa"  #                cli
    "31c0 8ed8 8ec0 8ed0"  # xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax
    "bc007c"  #            mov sp,0x7c00
    "ea117c0000"  #        jmp 0:0x7c11             some BIOSes start at 07c0:0000
    "fc"  #                cld
    "baf903 30c0 ee"  #    out 0x3f9,0              no interrupts
    "bafb03 b080 ee"  #    out 0x3fb,0x80           divisor visible
    "baf803 b001 ee"  #    out 0x3f8,1              115200 baud
    "42 30c0 ee"  #        out 0x3f9,0
    "bafb03 b003 ee"  #    out 0x3fb,3              8 data bits, no parity, 1 stop bit
    "be4d7c"  #            mov si,0x7c4d            the text
    "ac 84c0 7414"  #      next: lodsb; test al,al; jz done
    "88c3 31c9"  #         mov bl,al; xor cx,cx
    "bafd03 ec a820 e1f8"  # wait: in al,0x3fd; test al,0x20; loopz wait
    "baf803 88d8 ee"  #    out 0x3f8,bl
    "ebe7"  #              jmp next
    "f4 ebfd"  #           done: hlt; jmp done
)
TEXT_LIMIT = 446 - len(CODE) - 3
"""Most bytes of the message: the partition table begins at byte 446, and the line's end takes three."""


def boot_sector(message: str, *, partition_start: int, partition_sectors: int) -> bytes:
    """Return the first sector of a disk that says `message` when a BIOS boots it.

    Parameters
    ----------
    message
        ASCII text, of at most `TEXT_LIMIT` characters.
    partition_start, partition_sectors
        The one partition (type Linux, active), in sectors.

    Raises
    ------
    ValueError
        When the message is too long or not ASCII.
    """
    text = message.encode("ascii")
    if len(text) > TEXT_LIMIT or b"\0" in text:
        error = f"the message has {len(text)} bytes; at most {TEXT_LIMIT} fit, and none may be zero"
        raise ValueError(error)
    program = (CODE + text + b"\r\n\0").ljust(440, b"\0")
    signature = b"VMSX\0\0"  # the disk's identifier, and two bytes that are always zero
    chs = b"\xfe\xff\xff"  # beyond cylinders, heads and sectors: the sector numbers count
    entry = b"\x80" + chs + b"\x83" + chs + struct.pack("<II", partition_start, partition_sectors)
    return (program + signature)[:446] + entry + bytes(48) + b"\x55\xaa"
