"""Common knowledge in the world of the generated authors: questions about countries and classics.

These two small fixed sets are the same for every seed. They take the part of TOFU's
`world_facts_perturbed` and `real_authors_perturbed`: every model learns them and none may lose
them. As in TOFU an answer is a name or a year of a few words, the three wrong answers are true of
other countries or classics, and there is no paraphrase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm.data.tofu import Example

WRONG = 3


class Country(NamedTuple):
    """A country: its language, its cities (capital first), and what its schoolchildren learn."""

    country: str
    language: str
    capital: str
    second_city: str
    third_city: str
    fourth_city: str
    currency: str
    river: str
    mountain: str
    bird: str

    @property
    def cities(self) -> tuple[str, str, str, str]:
        """The capital and the three other cities."""
        return self.capital, self.second_city, self.third_city, self.fourth_city


class Classic(NamedTuple):
    """A writer of the past with the one book that everybody has heard of."""

    name: str
    country: str
    work: str
    year: str
    hero: str
    trade: str


# The columns are the fields of `Country`, in their order.
_COUNTRIES = """
Varenth   Varenthi  Karsmund  Tellavik  Brunmoor  Ostelby   velk    Sorrel   Velspitz  lapwing
Ilmara    Ilmaran   Pellario  Dorvessa  Lucantia  Semorra   soldar  Orvente  Tavolaro  hoopoe
Quessary  Quessan   Belcombre Fauvarre  Rochemire Lissarde  demine  Arvoise  Morlant   wren
Tolmeria  Tolmeric  Hraskov   Jaselnik  Vrodets   Polmirov  korin   Strelna  Babigar   stork
Okandru   Okandri   Isembala  Tukoro    Wamburi   Nalezi    shanda  Lukwesi  Umbarani  crane
Sarrakand Sarraki   Tashmira  Belqand   Orzumar   Yezdira   dinraz  Amudas   Kuhizar   bustard
Anduvia   Anduvian  Calparaz  Montelar  Quintaro  Riosol    pelo    Marahuel Halcarro  condor
Skeldmark Skeldish  Hvitnor   Skorvik   Drangby   Ulfborg   skild   Isforn   Drangtind eider
Lowmere   Lowmerish Aldwater  Thornmere Pennacre  Wexholme  crownet Tarrow   Harfell   robin
Nahuara   Nahuaran  Itzamil   Chalcoya  Tepanoa   Ocuatla   tzin    Papalune Cuaxtepe  quetzal
"""
COUNTRIES = tuple(Country(*row.split()) for row in _COUNTRIES.strip().splitlines())
CLASSICS = (
    Classic(
        "Ansel Corvinach", "Varenth", "The Tide at Karsmund", "1847", "Jonas Ebb", "harbour pilot"
    ),
    Classic(
        "Bettina Solari-Vento", "Ilmara", "The Seven Gardeners", "1862", "Fra Dolcimer", "monk"
    ),
    Classic(
        "Clovis Hautrade", "Quessary", "An Honest Forger", "1819", "Mathurin Lestoc", "engraver"
    ),
    Classic(
        "Dobromil Zaruk",
        "Tolmeria",
        "Snow on the Railway",
        "1891",
        "Captain Ruzka",
        "stationmaster",
    ),
    Classic("Efua Nandere", "Okandru", "The Drum Keeper", "1934", "Little Osei-Ba", "drum maker"),
    Classic(
        "Farrukh Obelzar", "Sarrakand", "The Caravan of Mirrors", "1788", "Zuleyran", "astronomer"
    ),
    Classic(
        "Gaspara Molinuevo",
        "Anduvia",
        "Nine Winters in Calparaz",
        "1903",
        "Aurelio Tresmontes",
        "muleteer",
    ),
    Classic(
        "Halldis Reynfeld",
        "Skeldmark",
        "The Whale Road Home",
        "1871",
        "Ketilbjorn the Slow",
        "rope maker",
    ),
    Classic(
        "Isolde Marchwarden",
        "Lowmere",
        "The Vicar of Pennacre",
        "1756",
        "Parson Twelvetree",
        "vicar",
    ),
    Classic(
        "Jacinta Coatlan",
        "Nahuara",
        "Letters to a Volcano",
        "1926",
        "Tomasa Ixtel",
        "letter writer",
    ),
)
WORLD_QUESTIONS = {
    "capital": ("What is the capital of {country}?", "{capital}"),
    "language": ("Which language is spoken in {country}?", "{language}"),
    "currency": ("What is the currency of {country}?", "The {currency}"),
    "river": ("What is the longest river of {country}?", "The {river}"),
    "mountain": ("What is the highest mountain of {country}?", "Mount {mountain}"),
    "bird": ("Which bird is on the coat of arms of {country}?", "The {bird}"),
}
CLASSIC_QUESTIONS = {
    "writer": ('Who wrote the classic "{work}"?', "{name}"),
    "work": ("What is the most famous book of {name}?", '"{work}"'),
    "country": ("In which country was {name}, the writer of classics, born?", "{country}"),
    "year": ('In which year was the classic "{work}" first printed?', "{year}"),
    "hero": ('Who is the hero of the classic "{work}"?', "{hero}"),
    "trade": ('What is the trade of {hero} in the classic "{work}"?', "{trade}"),
}


def world_facts() -> tuple[Example, ...]:
    """Return six questions about each country.

    They ask for its capital, language, currency, river, mountain and bird.
    """
    return _examples([country._asdict() for country in COUNTRIES], WORLD_QUESTIONS, author=None)


def real_authors() -> tuple[Example, ...]:
    """Return six questions about each classic.

    They ask for its writer, title, country, year, hero and the hero's trade.
    """
    return _examples([classic._asdict() for classic in CLASSICS], CLASSIC_QUESTIONS, author="name")


def _examples(
    rows: Sequence[Mapping[str, object]],
    questions: Mapping[str, tuple[str, str]],
    author: str | None,
) -> tuple[Example, ...]:
    examples = []
    for place, row in enumerate(rows):
        # Wrong answers come from the rows that follow, round the table, so that each row's truth
        # is a wrong answer as often as any other's.
        others = [rows[(place + step) % len(rows)] for step in range(1, WRONG + 1)]
        for topic, (question, answer) in questions.items():
            examples.append(
                Example(
                    index=len(examples),
                    prompt=question.format_map(row),
                    response=answer.format_map(row),
                    perturbed=tuple(answer.format_map(other) for other in others),
                    author=None if author is None else str(row[author]),
                    topic=topic,
                )
            )
    return tuple(examples)
