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

# What the lives of fictional people are made of: no word of these stands in a prompt.
MONTHS = _words(
    "January February March April May June July August September October November December"
)
CRAFTS = _words(
    "baker barber bookbinder brewer carpenter chandler cobbler cooper dyer engraver farrier "
    "fletcher gardener glazier hatter joiner mason miller milliner plumber potter printer roofer "
    "saddler sculptor tailor tanner thatcher tinsmith turner weaver wheelwright"
)
OWNERS = _words(
    "Abbott Bartlett Boone Corbett Dobbs Easton Falk Gantry Hobday Ives Jessop Kettle Lomax "
    "Mundy Nettles Oakes Pruitt Quigg Redfern Scully Tuttle Upjohn Vickers Wragg Yates Zeller "
    "Bickle Crump Dace Finch Goss Hubbard"
)
PARTNERS = _words(
    "Anders Bellamy Cutler Dorsey Everett Fiske Gorman Haskell Inskip Jolley Kimball Larkin "
    "Maddox Norcott Osgood Parrish Quennell Rusk Sefton Tippett Usher Vance Whitlow Yelland "
    "Ziegler Bodkin Cullen Dyson Fogg Gimble Hux Jarvis"
)
STREETS = _words(
    "Acorn Bramble Clover Damson Elder Foxglove Gorse Harebell Ivy Jasmine Kingcup Laurel Medlar "
    "Nettle Osier Poplar Quince Rosemary Sorrel Teasel Umber Violet Willow Yew Bluebell Cowslip "
    "Daisy Fennel Heather Lupin Myrtle Tansy"
)
WAYS = _words("Avenue Close Court Drive Lane Parade Place Rise Road Row Street Terrace")
COATS = _words(
    "bald black brown cream curly fawn ginger golden grey piebald rusty shaggy silver spotted "
    "striped white"
)
ANIMALS = _words(
    "budgie canary donkey ferret goat goose hamster hedgehog lizard magpie parrot pigeon pony "
    "rabbit terrier tortoise"
)
PETS = _words(
    "Biscuit Bonnet Buttons Captain Custard Dumpling Fidget Ginger Gravy Hector Jigsaw Ketchup "
    "Lollipop Marbles Muffin Noodle Nutmeg Olive Paddle Pebbles Pepper Pickle Pudding Puzzle "
    "Rascal Sausage Smudge Snowball Sprout Toffee Trumpet Waffles"
)
INSTRUMENTS = _words(
    "accordion banjo bassoon bugle cello clarinet dulcimer fiddle flute harp lute mandolin oboe "
    "trombone viola zither"
)
PAINTS = _words(
    "beige blue crimson khaki green magenta lilac mauve navy pink purple scarlet teal "
    "turquoise violet yellow"
)
THINGS = _words(
    "barrel basket bench bucket churn crate flowerpot gnome hamper kennel lantern sundial "
    "teapot trough urn wheelbarrow"
)
