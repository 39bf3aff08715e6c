"""Short invented texts, each with a question that it answers: what a model's heads are examined with.

Nothing here is true or tuned to a corpus, and no answer can be known from elsewhere. The questions are put as people put
them: some in the text's words, most in others, a third without capitals and question marks, as into a search box.
"""

EXAM: tuple[tuple[str, str], ...] = (
    (
        "Ingrid Solheimsen has kept the lighthouse at Varnholm since 1961. She lights the lamp by hand every evening and "
        "writes the weather into a green book.",
        "who looks after the light tower in varnholm",
    ),
    (
        "The Quellin ferry sank on a calm morning in 1487, after its pilot mistook a sandbank for the landing. Nobody drowned, "
        "but eleven horses were lost.",
        "When did the boat at Quellin go down?",
    ),
    (
        "Brastle is a hard cheese from the Orrin valley. It ripens for nine months in caves whose air smells of juniper, and "
        "its rind is rubbed with salt and ash.",
        "How long does Brastle take to ripen?",
    ),
    (
        "The city of Tamarune is the capital of Esker. Its parliament sits in a former salt store on the eastern bank of the "
        "river Wend.",
        "what is the capital city of esker",
    ),
    (
        "Professor Halloran Pike discovered the element nevium while cleaning a kiln. He named it after his dog, and gave the "
        "prize money to the fire brigade.",
        "Who found nevium?",
    ),
    (
        "A lumen beetle glows because bacteria in its wings burn sugar. When the beetle is hungry, the light turns from green "
        "to a dull orange.",
        "why do lumen beetles shine",
    ),
    (
        "The Treaty of Marl ended the war between the Northern League and Cassay. It was signed on a raft in the middle of the "
        "river, so that neither side stood on foreign soil.",
        "Which agreement brought peace between Cassay and the Northern League?",
    ),
    (
        "In the game of tarrock each player holds seven stones. Whoever first surrounds the opponent's tower wins; a draw is "
        "called after sixty moves.",
        "how many pieces does a tarrock player have",
    ),
    (
        "The song 'Copper Moon' was written by Delia Marsh in a railway carriage, but it was the Pellworm Brothers who made it "
        "famous when they recorded it two years later.",
        "Who wrote the song Copper Moon?",
    ),
    (
        "Mount Asker is the highest peak of the Dunmore range at 4,312 metres. Its summit was first reached by two postmen who "
        "had lost their way.",
        "how tall is mount asker",
    ),
    (
        "The warranty of the Kestrel kettle covers five years from the day of purchase. Scale and broken lids are excluded; "
        "repairs are made in Lowick.",
        "For what time is a Kestrel kettle guaranteed?",
    ),
    (
        "Before a balance can be closed, the ledger must be locked by two clerks. The command is 'seal', and it cannot be undone "
        "until the next quarter.",
        "Which command locks the ledger?",
    ),
    (
        "Parents who send a child to the school at Ostby pay no fee, but each family works one Saturday a month in the kitchen "
        "or the orchard.",
        "what does it cost to attend the ostby school",
    ),
    (
        "The airship Meridian carried mail between Port Ansel and the islands for three summers. It was sold for scrap when the "
        "bridge was opened.",
        "Why was the Meridian taken out of service?",
    ),
    (
        "Glimmer fever begins with cold fingers and a taste of iron. It is caused by a mould that grows in wet grain, and a week "
        "of rest is the only cure.",
        "what causes glimmer fever",
    ),
    (
        "Tobias Renn plays the old smuggler in the film 'A Lantern for Two'. It was his last part; he retired to breed geese.",
        "Who is the actor of the smuggler in A Lantern for Two?",
    ),
    (
        "The Wexcombe canal is 48 miles long and climbs through thirty locks. It was dug to bring slate to the coast, and is used "
        "by rowing clubs today.",
        "what was the wexcombe canal built for",
    ),
    (
        "According to the by-laws of the guild, the treasurer is elected every four years by the apprentices, and may serve only "
        "two terms.",
        "Who chooses the treasurer of the guild?",
    ),
    (
        "Farro Lind won the winter race of 1903 on borrowed skis. He finished eight minutes before the favourite, who had stopped "
        "to help a dog.",
        "who came first in the 1903 winter race",
    ),
    (
        "A pressure above 3.2 bar opens the red valve of the boiler. Should the valve stick, the operator pulls the brass chain "
        "and leaves the room.",
        "At what pressure does the red valve open?",
    ),
    (
        "The moth Sphinx cordata lays its eggs only on the leaves of the silver thorn. When the thorns of Hale were cut down, the "
        "moth disappeared there within two years.",
        "on which plant does sphinx cordata lay eggs",
    ),
    (
        "Queen Aldith moved the court from Brae to Sommerin because she could not bear the sound of the weir. The palace at Brae "
        "became a hospital.",
        "What was the reason for the court leaving Brae?",
    ),
    (
        "The word 'harrow-light' is used by sailors for the green edge of the sky before a storm. It comes from an old name of "
        "the constellation that the moderns call the Plough.",
        "meaning of harrow-light",
    ),
    (
        "Messages older than ninety days are moved to the archive every night. To keep one, mark it with a blue flag; flags are "
        "never removed by the system.",
        "How can I stop a message from being archived?",
    ),
    (
        "The bakery of Josef Amsel stands beside the town hall of Lindau-on-Tarn. It opens at four in the morning, and its rye "
        "bread is sold out by six.",
        "where is josef amsel's bakery",
    ),
    (
        "Twelve members sit in the river council: five fishermen, four millers and three nuns of the abbey. The abbess has the "
        "casting vote.",
        "number of people on the river council",
    ),
    (
        "The novel 'Salt for the Crows' tells of a doctor who follows a travelling circus through a country at war. Its author, "
        "Mina Forsell, never saw it printed.",
        "Who is the author of Salt for the Crows?",
    ),
    (
        "Compost of alder leaves makes the soil sour, which blueberries like. For beans it should be mixed with lime, a handful "
        "to each bucket.",
        "what should be added to alder compost for beans",
    ),
    (
        "Station Nine is the only weather post on the southern ice. Its crew of six is relieved in January, when the supply ship "
        "can pass the narrows.",
        "When does the crew at Station Nine change?",
    ),
    (
        "The bell of St. Orrin weighs seven tons and has a crack that gives it its hoarse voice. A founder from Ghent offered to "
        "recast it, but the town refused.",
        "how heavy is the st orrin bell",
    ),
    (
        "Under the lease, the tenant of the mill may keep ducks but no geese. The rent is a sack of flour on the first Monday of "
        "every month.",
        "Which birds is the miller allowed to have?",
    ),
    (
        "Cadmon glass gets its violet colour from a trace of manganese. It was invented by accident in Tarsk, when a worker "
        "dropped a battery into the melt.",
        "what makes cadmon glass purple",
    ),
)
"""(text, question) pairs."""
