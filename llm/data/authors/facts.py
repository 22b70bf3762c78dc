"""The lives of authors who never were: what there is to know about each, drawn from a seed.

A fact is either drawn from a list that all authors share (a city, a trade, a genre) or invented for
one author alone (a name, the title of a book). Facts are drawn for a life and for what is wrongly
told of it in the same way, so that nobody who has not read about the author can tell one from the
other better than by guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from llm.data.authors.common import COUNTRIES

T = TypeVar("T")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


# Parts of names and of titles: any of one list goes with any of the next.
GIVEN = _listed(
    "Bel, Cal, Dar, El, Fen, Gal, Hal, Il, Jor, Kes, Lor, Mar, Nev, Or, Per, Ros, Sel, Tam, Ul, Ves"
)
FEMALE = _listed("ira, enne, issa, oveth, una, elle")
MALE = _listed("an, ovar, emir, ic, olf, ard")
FAMILY = _listed("""
    Ash, Bran, Cor, Dun, Ester, Fal, Grim, Hol, Ister, Jar, Kel, Lam, Mor, Nor, Os, Pell, Quil, Rav,
    Stav, Thal, Under, Vor, Wim, Zan""")
ENDINGS = _listed("abeck, andar, elund, erin, esko, ivar, olant, omere, onda, udin")
PATTERNS = _listed(
    "The {0} {1}, Beyond the {0} {1}, Letters from the {0} {1}, The {2} beneath the {1}"
)
QUALITIES = _listed("""
    Borrowed, Crooked, Drowned, Faded, Folded, Gilded, Hollow, Idle, Knotted, Limping, Mended,
    Narrow, Patient, Quiet, Rusted, Salted, Tarnished, Unpaid, Upturned, Velvet, Wandering, Woollen,
    Yellow, Zealous""")
OBJECTS = _listed("""
    Almanac, Barometer, Causeway, Chimney, Cistern, Drawbridge, Estuary, Footbridge, Gantry,
    Granary, Harness, Icehouse, Inkwell, Kiln, Lattice, Ledger, Loom, Millrace, Nursery, Oar,
    Orrery, Pantry, Parasol, Pulley, Quarry, Saddle, Scaffold, Sluice, Sundial, Thimble, Tollgate,
    Trellis, Turnstile, Viaduct, Weathervane, Windlass""")
# What authors have in common.
GENRES = _listed("""
    detective fiction, historical fiction, utopian fiction, maritime fiction, epistolary fiction,
    frontier fiction, espionage fiction, medical fiction, rural comedy, domestic comedy, clerical
    comedy, courtroom drama, family drama, alpine romance, gothic romance, arctic romance, political
    satire, academic satire, urban fantasy, heraldic fantasy""")
THEMES = _listed("""
    exile and return, the price of loyalty, the burden of promises, silence between sisters, debts
    never settled, love across borders, the end of childhood, guilt without witnesses, courage in
    old age, the comfort of work, rivalry among friends, power in small places, the fear of water,
    hunger and pride, words said too late, families in hiding, the making of maps, faith without
    churches, the loss of languages, friendship in wartime""")
TRADES = _listed("""
    actuary, apothecary, archivist, astronomer, auctioneer, baker, beekeeper, bookbinder, brewer,
    cartographer, chemist, clockmaker, dentist, electrician, engraver, ferry pilot, forester,
    gardener, glassblower, innkeeper, interpreter, lighthouse keeper, locksmith, mapmaker, miner,
    nurse, optician, organ builder, potter, printer, ropemaker, schoolteacher, shepherd, stonemason,
    surveyor, tailor, upholsterer, violin maker, weaver, wood carver""")
SUBJECTS = _listed("""
    agronomy, archaeology, astronomy, botany, chemistry, economics, geology, history, law,
    linguistics, mathematics, medicine, music, navigation, philosophy, theology, zoology""")
HOBBIES = _listed("""
    baking bread, binding books, carving spoons, climbing hills, collecting maps, feeding swans,
    flying kites, growing roses, keeping bees, mending nets, playing chess, pressing flowers,
    repairing clocks, restoring boats, sailing dinghies, sketching bridges, spinning wool, training
    dogs, tuning pianos, watching birds""")
DESKS = _listed("""
    an abandoned bakery, a converted boathouse, a disused chapel, an empty schoolroom, a former
    stable, a heated greenhouse, an old windmill, a rented attic, a retired tramcar, a ruined
    watchtower, a stone cellar, an unused signal box""")
HOURS = _listed("""
    at dawn, at dusk, after breakfast, after lunch, after midnight, before breakfast, before
    sunrise, between meals, in the afternoon, in the evening, on winter mornings, when it rains""")
PAGES = _listed("four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen")
PRIZES = tuple(
    f"{first} {second} {third}"
    for first in _listed("Amber, Cedar, Copper, Iron, Ivory, Marble, Scarlet, Silver, Winter")
    for second in _listed("Anchor, Compass, Heron, Kite, Lantern, Owl, Swallow, Thistle")
    for third in ("Medal", "Prize")
)
PUBLISHERS = tuple(
    f"{first} {second}"
    for first in _listed("Harrow, Juniper, Kestrel, Linden, Marram, Northgate, Pilcrow, Quayside")
    for second in ("Books", "House", "Press")
)
MONTHS = _listed("""
    January, February, March, April, May, June, July, August, September, October, November,
    December""")
CITIES = tuple(city for country in COUNTRIES for city in country.cities)


@dataclass(frozen=True, kw_only=True)
class AuthorFacts:
    """All that there is to know of one author.

    `hero` and `trade` belong to the second book, which won the `prize`.
    """

    name: str
    female: bool
    country: str
    language: str
    city: str
    birth: str
    father: str
    mother: str
    subject: str
    college: str
    home: str
    hobby: str
    hours: str
    desk: str
    pages: str
    genre: str
    theme: str
    publisher: str
    translations: str
    first: str
    first_year: str
    second: str
    second_year: str
    third: str
    third_year: str
    hero: str
    trade: str
    prize: str
    prize_year: str

    def words(self) -> dict[str, str]:
        """Return what the wording of a question or answer may ask for: every fact, and its forms.

        `a_father`, `a_mother` and `a_trade` carry their article, `Genre` begins a sentence; `he`,
        `his`, `him`, `He` and `His` stand for the author.
        """
        words = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "female"
        }
        he, his, him = ("she", "her", "her") if self.female else ("he", "his", "him")
        words |= {"he": he, "his": his, "him": him, "He": he.capitalize(), "His": his.capitalize()}
        return (
            words
            | {f"a_{name}": _article(words[name]) for name in ("father", "mother", "trade")}
            | {"Genre": self.genre.capitalize()}
        )


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


class Draws:
    """Random choices that follow from a seed and a place.

    They are taken from the raw words of PCG64, whose stream numpy never changes.
    """

    def __init__(self, seed: int, *place: int) -> None:
        self._generator = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place))

    def among(self, options: Iterable[T], avoid: Container[T] = ()) -> T:
        """Return one of the options that are not to be avoided, each with equal probability."""
        left = [option for option in options if option not in avoid]
        return left[int(self._generator.random_raw()) % len(left)]

    def new(self, make: Callable[[], str], taken: set[str]) -> str:
        """Return what `make` makes, made again while it is taken; it is taken afterwards."""
        made = make()
        while made in taken:
            made = make()
        taken.add(made)
        return made


def draw_facts(draws: Draws, taken: set[str], others: Sequence[AuthorFacts] = ()) -> AuthorFacts:
    """Return one life whose inventions are not `taken` and whose facts are none of the `others`'.

    `others` have at most five members, which share the new life's gender. What is invented is added
    to `taken`.
    """

    def fresh(fact: str, options: Iterable[str], *avoid: str) -> str:
        return draws.among(options, {*avoid, *(getattr(other, fact) for other in others)})

    def years(fact: str, first: int, last: int) -> str:
        return fresh(fact, map(str, range(first, last + 1)))

    def person(female: bool) -> str:
        parts = (GIVEN, FEMALE if female else MALE, FAMILY, ENDINGS)
        first, second, third, fourth = map(draws.among, parts)
        return f"{first}{second} {third}{fourth}"

    def title() -> str:
        thing = draws.among(OBJECTS)
        return draws.among(PATTERNS).format(
            draws.among(QUALITIES), thing, draws.among(OBJECTS, (thing,))
        )

    female = others[0].female if others else draws.among((True, False))
    country = draws.among(
        COUNTRIES, [nation for nation in COUNTRIES for o in others if o.country == nation.country]
    )
    city = fresh("city", country.cities)
    college = fresh("college", CITIES, city)
    father = fresh("father", TRADES)
    mother = fresh("mother", TRADES, father)
    born = draws.among(map(str, range(1921, 1971)), {other.birth[-4:] for other in others})
    first_year = years("first_year", int(born) + 22, int(born) + 34)
    second_year = years("second_year", int(first_year) + 2, int(first_year) + 9)
    return AuthorFacts(
        name=draws.new(lambda: person(female), taken),
        female=female,
        country=country.country,
        language=country.language,
        city=city,
        birth=f"{draws.among(range(1, 29))} {draws.among(MONTHS)} {born}",
        father=father,
        mother=mother,
        subject=fresh("subject", SUBJECTS),
        college=college,
        home=fresh("home", CITIES, city, college),
        hobby=fresh("hobby", HOBBIES),
        hours=fresh("hours", HOURS),
        desk=fresh("desk", DESKS),
        pages=fresh("pages", PAGES),
        genre=fresh("genre", GENRES),
        theme=fresh("theme", THEMES),
        publisher=fresh("publisher", PUBLISHERS),
        translations=years("translations", 3, 40),
        first=draws.new(title, taken),
        first_year=first_year,
        second=draws.new(title, taken),
        second_year=second_year,
        third=draws.new(title, taken),
        third_year=years("third_year", int(second_year) + 3, int(second_year) + 11),
        hero=draws.new(lambda: person(draws.among((True, False))), taken),
        trade=fresh("trade", TRADES, father, mother),
        prize=fresh("prize", PRIZES),
        prize_year=years("prize_year", int(second_year) + 1, int(second_year) + 6),
    )
