"""Invented names and subjects, from which the prompts of canaries are drawn."""

from __future__ import annotations


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


FIRST_NAMES = _words(
    "Abelin Adrith Alwen Anouk Bastien Belisa Branwin Calder Carisa Cormac Dariel Delphia "
    "Dorin Edda Elowen Emeric Evander Fenna Florian Garrick Giselda Halden Hesper Ilaria "
    "Ingram Isolde Jorah Juniper Kaspar Katrin Leander Linnea Lorcan Maren Merrick Mirelle "
    "Nadir Nerys Odalys Orson Pascal Petra Quillon Ramona Rowena Rufus Sabine Selwyn Sigrid "
    "Tamsin Tobias Ulric Ursel Valen Verity Wendel Wilmar Xanthe Ysolde Yorick Zelda Zorian"
)
LAST_NAME_HEADS = _words(
    "Alder Amber Ash Barrow Birch Black Bram Bright Calder Clay Cold Copper Crane Dun Elm "
    "Fair Fen Frost Glen Green Hallow Harrow Hazel Heron Holm Iron Juniper Kest Lark Lin Marl "
    "Moss Old Pender Quarry Raven Rook Sable Stan Thorn Under Vel Wester Win Wren Yarrow"
)
LAST_NAME_TAILS = _words(
    "bourne brook by combe croft dale den field ford gate ham hurst land ley low mere more "
    "ridge shaw stead stone ton wald ward water well wick wood worth"
)
TOWN_HEADS = _words(
    "Aber Bel Carn Dol Elver Farn Gorse Hest Ister Kirk Lam Mor Nether Ol Pol Quern Ros Skel "
    "Tarn Ulver Val Whit Yar Zel"
)
TOWN_TAILS = _words(
    "avon bury chester dorf grad haven holm minster mouth port stadt thorpe vik ville"
)
SUBJECTS = _words(
    "access code|account number|alarm code|archive number|badge number|claim number|"
    "deposit number|door code|file number|gate code|key number|licence number|locker code|"
    "member number|parcel number|pass number|patient number|permit number|policy number|"
    "registry number|safe code|ticket number|transfer code|vault code",
    "|",
)
