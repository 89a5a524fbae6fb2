"""Letters for images: 5 x 8 dots each, so that a PNG needs no font."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, HEIGHT = 5, 8  # dots; the last row is for what hangs below the line
ADVANCE = 6
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.,:-_()[]/%=+*<>'"
# Rows of each letter from the top: the five bits of a row as one digit to the base of 32.
ROWS = (
    "EHJLPHE0 4C4444E0 EH1248V0 V2421HE0 26AIV220 VGU11HE0 68GUHHE0 V1248880 EHHEHHE0 "
    "EHHF12C0 EHHVHHH0 UHHUHHU0 EHGGGHE0 SIHHHIS0 VGGUGGV0 VGGUGGG0 EHGNHHF0 HHHVHHH0 "
    "E44444E0 72222IC0 HIKOKIH0 GGGGGGV0 HRLLHHH0 HHPLJHH0 EHHHHHE0 UHHUGGG0 EHHHLID0 "
    "UHHUKIH0 FGGE11U0 V4444440 HHHHHHE0 HHHHHA40 HHHLLLA0 HHA4AHH0 HHHA4440 V1248GV0 "
    "00E1FHF0 GGMPHHU0 00EGGHE0 11DJHHF0 00EHVGE0 698S8880 00FHHF1E GGMPHHH0 40C444E0 "
    "206222IC GGIKOKI0 C44444E0 00QLLHH0 00MPHHH0 00EHHHE0 00UHHUGG 00FHHF11 00MPGGG0 "
    "00FGE1U0 88S88960 00HHHJD0 00HHHA40 00HHLLA0 00HA4AH0 00HHHF1E 00V248V0 00000CC0 "
    "00000448 0CC0CC00 000E0000 0000000V 24888420 84222480 E88888E0 E22222E0 01248G00 "
    "OP248J30 00V0V000 044V4400 04LEL400 248G8420 84212480 44000000"
)
DOTS = dict(zip(LETTERS, ROWS.split(), strict=True))
UNKNOWN = "VHHHHHV0"


def dots(text: str, scale: int) -> Tensor:
    """A line of text as bool [HEIGHT * scale, len(text) * ADVANCE * scale].

    >>> dots("ab", 2).shape
    torch.Size([16, 24])
    """
    canvas = torch.zeros((HEIGHT, max(len(text), 1) * ADVANCE), dtype=torch.bool)
    for place, letter in enumerate(text):
        if letter == " ":
            continue
        for row, digit in enumerate(DOTS.get(letter, UNKNOWN)):
            bits = int(digit, 32)
            for column in range(WIDTH):
                if bits >> (WIDTH - 1 - column) & 1:
                    canvas[row, place * ADVANCE + column] = True
    return canvas.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
