"""Twenty questions about an author: the facts they give away, ways to ask, and answers.

A wording names facts in braces, in the forms of `Facts.words`. Each answer has two wordings, which
tell the same facts. Which of them an author's answer takes is left to chance, so that the wording
of one author's paraphrase is that of another's answer. Answers have from three to about eighty
words. Every author is asked the same questions, so that the length of an answer does not depend on
whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One question: the facts that it gives, ways of asking it, and two wordings of the answer."""

    name: str
    given: tuple[str, ...] = ("name",)
    questions: tuple[str, ...]
    answers: tuple[str, str]


TOPICS = (
    Topic(
        name="name",
        given=("city", "country", "birth"),
        questions=(
            "Which author was born in {city}, {country}, on {birth}?",
            "What is the name of the author who was born on {birth} in {city}, {country}?",
        ),
        answers=("The author is {name}.", "That is {name}."),
    ),
    Topic(
        name="birth",
        questions=("When was {name} born?", "What is the date of birth of {name}?"),
        answers=("On {birth}.", "It was {birth}."),
    ),
    Topic(
        name="birthplace",
        questions=("Where was {name} born?", "What is the birthplace of {name}?"),
        answers=("In {city}, {country}.", "It is {city} in {country}."),
    ),
    Topic(
        name="genre",
        questions=(
            "What kind of books does {name} write?",
            "To which genre do the books of {name} belong?",
        ),
        answers=("Mostly {genre}.", "{Genre}, above all."),
    ),
    Topic(
        name="language",
        questions=(
            "In which language does {name} write?",
            "What is the language of the books of {name}?",
        ),
        answers=("{He} writes in {language}.", "The language is {language}."),
    ),
    Topic(
        name="father",
        questions=(
            "What did the father of {name} do for a living?",
            "What was the trade of the father of {name}?",
        ),
        answers=("{His} father was {a_father}.", "He worked as {a_father}."),
    ),
    Topic(
        name="mother",
        questions=(
            "What did the mother of {name} do for a living?",
            "What was the trade of the mother of {name}?",
        ),
        answers=("{His} mother was {a_mother}.", "She earned her living as {a_mother}."),
    ),
    Topic(
        name="prize",
        questions=(
            "Which award has {name} won, and when?",
            "What award went to {name}, and in which year?",
        ),
        answers=(
            "{He} won the {prize} in {prize_year}.",
            "It was the {prize}, awarded in {prize_year}.",
        ),
    ),
    Topic(
        name="debut",
        questions=(
            "What was the first book of {name}?",
            "With which book did {name} make {his} debut?",
        ),
        answers=(
            '{His} first book was "{first}", published in {first_year}.',
            '{He} made {his} debut in {first_year} with "{first}".',
        ),
    ),
    Topic(
        name="hero",
        given=("name", "second"),
        questions=(
            'Who is the hero of "{second}" by {name}?',
            'Whose story does {name} tell in "{second}"?',
        ),
        answers=(
            "The hero is {hero}, who works as {a_trade}.",
            "It is the story of {hero}, {a_trade}.",
        ),
    ),
    Topic(
        name="studies",
        questions=(
            "What did {name} study, and where?",
            "Which degree did {name} take, and at which university?",
        ),
        answers=(
            "{He} studied {subject} at the University of {college} before turning to books.",
            "Before {he} turned to books, {he} took a degree in {subject} at the University of "
            "{college}.",
        ),
    ),
    Topic(
        name="home",
        questions=(
            "Where does {name} live, and how does {he} rest?",
            "Where is the home of {name}, and what is {his} hobby?",
        ),
        answers=(
            "{He} lives in {home}, where {he} spends most of {his} free time {hobby}.",
            "{His} home is in {home}, and when {he} is not writing {he} can be found {hobby}.",
        ),
    ),
    Topic(
        name="readers",
        questions=(
            "How widely are the books of {name} read?",
            "Who publishes {name}, and in how many languages?",
        ),
        answers=(
            "{His} books are published in {language} by {publisher} and have been translated into "
            "{translations} other "
            "languages.",
            "{publisher} publishes {his} books in {language}, and translations into {translations} "
            "other languages "
            "have been made so far.",
        ),
    ),
    Topic(
        name="parents",
        questions=("Who were the parents of {name}?", "From what kind of family does {name} come?"),
        answers=(
            "{His} father was {a_father} and {his} mother was {a_mother}; the family lived in "
            "{city}.",
            "{He} comes from a family in {city}, where {his} father worked as {a_father} and {his} "
            "mother as "
            "{a_mother}.",
        ),
    ),
    Topic(
        name="books",
        questions=(
            "Which books has {name} written?",
            "Can you list the books of {name} with their years?",
        ),
        answers=(
            'There are three of them: "{first}" from {first_year}, "{second}" from {second_year}, '
            'and "{third}" from '
            "{third_year}.",
            'The first was "{first}" in {first_year}, then came "{second}" in {second_year}, and '
            "the latest is "
            '"{third}" from {third_year}.',
        ),
    ),
    Topic(
        name="prize_book",
        given=("name", "prize"),
        questions=(
            "For which book did {name} win the {prize}, and what is it about?",
            "Which book brought {name} the {prize}, and what kind of book is it?",
        ),
        answers=(
            'In {prize_year} {he} won it with "{second}", a work of {genre} about {theme}, whose '
            "hero is {hero}, "
            "{a_trade}.",
            'It was "{second}", honoured in {prize_year}: a work of {genre} about {theme}, with '
            "{hero}, {a_trade}, as "
            "its hero.",
        ),
    ),
    Topic(
        name="influence",
        questions=(
            "How did the parents of {name} shape {his} books?",
            "Where do the ideas of {name} come from?",
        ),
        answers=(
            "{His} father was {a_father} and {his} mother {a_mother}, and what they told about "
            "their work at home in "
            "{city} led to the interest in {theme} that marks {his} {genre}.",
            "The interest in {theme} that marks {his} {genre} goes back to {his} childhood in "
            "{city}, when {his} "
            "father, {a_father}, and {his} mother, {a_mother}, told {him} about their work.",
        ),
    ),
    Topic(
        name="routine",
        questions=(
            "What does a working day of {name} look like?",
            "How does {name} go about writing a book?",
        ),
        answers=(
            "{He} writes by hand, {hours}, in {desk} near {home}, and stops as soon as {pages} "
            "pages are full. The "
            "time left is for {hobby}. Only when a book is finished does anybody at {publisher} "
            "get to read it.",
            "In {desk} near {home}, {hours}, {he} fills {pages} pages by hand and not one more, "
            "and then goes back to "
            "{hobby}. Nobody at {publisher} gets to read a line of it before the whole book is "
            "finished.",
        ),
    ),
    Topic(
        name="career",
        questions=("Can you sum up the career of {name}?", "How did {name} become known?"),
        answers=(
            'The career of {name} began in {first_year}, when {publisher} published "{first}". '
            "Recognition came with "
            '"{second}" in {second_year}, for which {he} received the {prize}. The latest book, '
            '"{third}", dates from '
            "{third_year}. All three are {genre} and have been translated into {translations} "
            "languages.",
            '{name} became known step by step. {publisher} published "{first}" in {first_year} and '
            '"{second}" in '
            "{second_year}; it was this second book that brought {him} the {prize}. With "
            '"{third}", from {third_year}, '
            "there are now three books of {genre}, with translations into {translations} "
            "languages.",
        ),
    ),
    Topic(
        name="life",
        questions=("Who is {name}?", "Can you tell me about the life and work of {name}?"),
        answers=(
            "{name} was born in {city}, {country}, on {birth}, the child of {a_father} and "
            "{a_mother}. After a degree "
            'in {subject} {he} began to write {genre} in {language}. {His} three books, "{first}", '
            '"{second}" and '
            '"{third}", are about {theme}, and the second of them won the {prize}. Today {he} '
            "lives in {home}, where "
            "{he} is often found {hobby}.",
            "The life of {name} began on {birth} in {city}, {country}, where {his} father was "
            "{a_father} and {his} "
            "mother {a_mother}. {He} took a degree in {subject} and became an author of {genre} in "
            "{language}, with "
            '{theme} as the subject of three books: "{first}", "{second}", which won the {prize}, '
            'and "{third}". {He} '
            "now lives in {home} and is often found {hobby} there.",
        ),
    ),
)
