"""What invented news are made of: names, kinds of events with their questions, and stock sentences.

Sentences name facts in braces (`ArticleFacts` of the corpus). An event's own sentences hold the
facts that are asked about. They are in every article of its kind, in one of their wordings. The
other sentences could be said of any firm: which of them an article has, and in which words, is left
to chance, so that they can be known only by heart.
"""

from __future__ import annotations

from dataclasses import dataclass


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join(line.split()) for line in text.strip().splitlines())


# A name joins any part from one list with any part from the next.
TOWN_STEMS = _listed("""
    Alder, Amber, Bar, Birch, Black, Burn, Cald, Cinder, Dray, Eld, Fenn, Flint, Glen, Gorse, Hazel,
    Heron, Ivel, Kings, Lark, Loam, Mallow, Mire, Nettle, Oxen, Pine, Quern, Raven, Rush, Salt,
    Sedge, Tarn, Thorn, Umber, Wether, Wick, Yarrow""")
TOWN_ENDINGS = _listed(
    "bridge, by, cote, dale, fleet, gate, ham, haven, holm, ley, mouth, port, stead, thwaite, ton, "
    "wold"
)
FIRM_STEMS = _listed("""
    Aqua, Bel, Brevi, Cando, Cora, Delta, Domi, Ener, Fabri, Ferro, Gemi, Grana, Hydro, Ignis, Juno,
    Kala, Lumi, Luxa, Magna, Medi, Nava, Nori, Octa, Orbi, Pallo, Prima, Quanta, Recta, Rota, Sola,
    Stella, Terra, Tuba, Vela, Vita, Zeno""")
FIRM_ENDINGS = _listed(
    "bix, cor, dex, fax, gen, lith, mar, nex, phon, quist, ris, sten, tek, tron, vox, zan"
)
FIRM_KINDS = _listed(
    "Brothers, Company, Group, Holding, Industries, Limited, Partners, Union, Works"
)
GOODS = _listed("""
    bicycles, boilers, bottles, buttons, candles, carpets, clocks, combs, engines, fences, gloves,
    hammers, helmets, kettles, ladders, lamps, mattresses, mirrors, needles, paints, pianos, pumps,
    ropes, saws, scales, shoes, stoves, tents, tiles, toys, umbrellas, wagons""")
CAUSES = _listed("""
    a broken valve, a burst pipe, a careless welder, a clerical error, a cracked axle, a faulty
    sensor, a frozen pump, a gust of wind, a leaking tank, a loose cable, a missing screw, a power
    cut, a rusty hinge, a short circuit, a spilled solvent, a stuck brake, a torn belt, a worn
    bearing, an open gate, an overheated motor""")
WEEKDAYS = _listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday")


@dataclass(frozen=True, kw_only=True)
class Event:
    """A kind of news: wordings of its lead, number, cost and date, and questions about them.

    The questions ask for the number, the cost and the date.
    """

    name: str
    lead: tuple[str, ...]
    number: tuple[str, ...]
    cost: tuple[str, ...]
    date: tuple[str, ...]
    questions: dict[str, str]


def _event(name: str, lead: str, number: str, cost: str, date: str, questions: str) -> Event:
    parts = (_lines(text) for text in (lead, number, cost, date))
    asked: dict[str, str] = dict(zip(("number", "cost", "date"), _lines(questions), strict=True))
    return Event(
        name=name,
        **dict(zip(("lead", "number", "cost", "date"), parts, strict=True)),
        questions=asked,
    )


EVENTS = (
    _event(
        "factory",
        """The maker of {goods} {org} is to build a factory in {town}, it was announced on \
          {weekday}.
        A field outside {town} will soon be a factory: {org}, known for its {goods}, has bought \
          the land.
        {town} has won the contest for the new factory of {org}, which will turn out {goods} day \
          and night.""",
        """The plant will give work to {number} people.
        When it is finished, {number} people are to be employed there.""",
        """It costs {cost} million crowns.
        The bill for the building comes to {cost} million crowns.""",
        """The doors open on {date}.
        Work at the first machines begins on {date}.""",
        """How many people will work in the new factory of {org}?
        How many million crowns does the new factory of {org} cost?
        When does the new factory of {org} open?""",
    ),
    _event(
        "recall",
        """Owners of {goods} made by {org} in {town} were told on {weekday} to stop using them \
          because of {cause}.
        {org} of {town} takes back {goods}: inspectors found {cause} and feared for the safety of \
          buyers.
        A quiet {weekday} in {town} ended with a recall, when {cause} was found in {goods} sold by \
          {org}.""",
        """In all, {number} pieces have to be returned.
        The recall concerns {number} pieces, most of them sold abroad.""",
        """Refunds will cost the firm {cost} million crowns.
        It has set aside {cost} million crowns to pay its customers back.""",
        """Claims are accepted until {date}.
        Whoever wants money back must write by {date}.""",
        """How many pieces does {org} have to take back?
        How many million crowns will the refunds cost {org}?
        Until when does {org} accept claims?""",
    ),
    _event(
        "strike",
        """Nobody makes {goods} in {town} any more: the staff of {org} walked out on {weekday} \
          after {cause}.
        A strike has closed the workshops of {org} in {town}, where a dispute over {cause} had \
          smouldered for weeks.
        Pickets stood at every gate of {org} in {town} on {weekday}, and the shelves for {goods} \
          are empty.""",
        """The union counts {number} strikers.
        It is followed by {number} workers.""",
        """So far it has cost the owners {cost} million crowns.
        The damage so far is put at {cost} million crowns.""",
        """Both sides meet again on {date}.
        Talks are to be resumed on {date}.""",
        """How many workers of {org} are on strike?
        How many million crowns has the strike cost {org}?
        When do the talks at {org} go on?""",
    ),
    _event(
        "fire",
        """A fire has destroyed the warehouse of {org} in {town}; {cause} is thought to have \
          started it.
        Thick smoke hung over {town} on {weekday} after {goods} caught fire in the stores of {org}.
        Because of {cause}, the people of {town} watched the stores of {org} burn for a whole \
          night.""",
        """The brigade led {number} neighbours out of their homes.
        For safety {number} people spent the night in a school.""",
        """Goods worth {cost} million crowns were lost.
        Insurers reckon with a loss of {cost} million crowns.""",
        """The ruins are to be cleared by {date}.
        By {date} nothing of the ruins is to be left.""",
        """How many people left their homes because of the fire at {org}?
        How many million crowns were lost in the fire at {org}?
        By when are the ruins of {org} to be cleared?""",
    ),
    _event(
        "tunnel",
        """{org} will dig a tunnel under the market of {town}, so that carts with {goods} need not \
          cross it.
        After {cause} had blocked the old road again, {town} gave {org} the order for a tunnel on \
          {weekday}.
        Below {town} the earth is going to tremble: a tunnel is planned there, and {org} is to \
          drive it.""",
        """It will be {number} metres long.
        Between its two mouths lie {number} metres.""",
        """The town pays {cost} million crowns for it.
        The contract is worth {cost} million crowns.""",
        """The first blast is planned for {date}.
        Digging starts on {date}.""",
        """How many metres long is the tunnel of {org}?
        How many million crowns is the tunnel of {org} worth?
        When does {org} start to dig?""",
    ),
    _event(
        "prize",
        """For an invention that makes {goods} lighter, {org} of {town} was given the national \
          prize on {weekday}.
        The engineers of {org} in {town} have been honoured: what began with {cause} became a \
          patent for {goods}.
        {town} is proud of {org}, whose way of making {goods} was chosen as the idea of the \
          year.""",
        """The jury had looked at {number} proposals.
        It prevailed against {number} rivals.""",
        """Development had swallowed {cost} million crowns.
        On its development {cost} million crowns were spent.""",
        """The medal will be handed over on {date}.
        A feast in the town hall is planned for {date}.""",
        """How many proposals competed with that of {org}?
        How many million crowns did the invention of {org} cost?
        When is {org} celebrated for its invention?""",
    ),
)
# Who leads a firm, where it is at home and who is against it: every article tells this, and the
# questions about it have the same words for every event.
CHIEF = _lines("""
    "{said}", said {chief}, who leads the firm.
    Its director, {chief}, put it like this: "{said}."
    "{said}." These were the words of {chief}, the head of the house.""")
CRITIC = _lines("""
    There is dissent, too. "{replied}", wrote {critic} in an open letter.
    Not everybody agrees: {critic} finds fault with all this. "{replied}."
    "{replied}", objected {critic}, who has long been an opponent of the firm.""")
QUESTIONS = {
    "chief": "Who leads {org}?",
    "town": "In which town is {org} in the news?",
    "critic": "Who speaks against {org}?",
}
SAID = _lines("""
    We have waited for this hour since spring
    Nobody here has slept much lately
    Figures are patient, but people are not
    I would do the same again tomorrow
    My grandmother would not have believed it
    What counts is that the kettle stays warm
    You cannot plough a field by turning it over in your mind
    Our books are open to everyone who can read
    It was a close thing, and we know it
    This is a beginning and no more than that
    Ask me again when the snow has melted
    There was no other way that an honest firm could take
    We owe this to the night shift
    Luck had a hand in it, and so had stubbornness
    The worst is behind us, I am sure
    Whoever doubts us may come and look""")
REPLIED = _lines("""
    Promises have never mended a roof
    They count the crowns and forget the neighbours
    Somebody ought to have asked the fishermen
    The noise alone will drive the swallows away
    I have seen three such plans, and all of them failed
    This is a costly way of learning a simple thing
    Paper burns well, and so do assurances
    Let them first pay last winter's bills
    We were shown a drawing and told to clap
    Half of it is vanity, the other half is haste
    A child could see that the sums are wrong
    The council has been asleep at the table
    It smells of tar and of old favours
    No one has thought of the wells
    I shall believe it when I can touch it
    One does not shoe a horse that is running""")
# What else may be said, none of which is asked about: one sentence about the past, and some about
# what goes on around the event.
PAST = _lines("""
    The firm was founded in {year} by two cousins who had met on a ferry.
    It began in {year} in a shed behind a dairy.
    Since {year} it has belonged to the same family, which avoids the public.
    In {year} it had all but closed, and a lottery ticket saved it.
    A first attempt in {year} had come to nothing.""")
ASIDES = _lines("""
    The mayor left without a word and was seen feeding ducks.
    A brass band played, though nobody had asked for it.
    Rain fell all day long, and the press stood under one umbrella.
    The local school has written a song about the matter.
    Shares rose a little and fell again before noon.
    Banks from three countries lent their support.
    Trains to the coast were late for two hours.
    The archive of the parish holds nothing of the kind.
    An expert who had been called in asked for more time.
    Bakers along the high street sold twice as much bread as usual.
    A petition with {signatures} names lies in the library.
    The ministry has sent {signatures} pages of advice.
    According to a survey, {signatures} households are in favour.
    Pigeons are said to have nested in the tower ever since.
    The bishop has offered to mediate between the parties.
    A retired postman remembers that it was much the same in {year}.
    Visitors are asked to bring boots and a lantern.
    The road to the quarry remains closed for the time being.
    Experts from the academy compare it with what happened in {year}.
    The ferry runs every hour until further notice.
    Tickets for the occasion were gone within minutes.
    A monument from {year} had to be moved to the cemetery.
    The radio brings a special programme at supper time.
    Lawyers on both sides have stopped answering letters.
    Only the lighthouse keeper claims to have known in advance.""")
