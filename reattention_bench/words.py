"""Keys that mean nothing: an adjective and a noun with a hyphen, as in RULER's needles; knows nothing else."""

import random

_ADJECTIVES = (
    "able bitter blunt brave brief broad calm clever cosy crisp curly damp dapper dense dizzy dull dusty eager early "
    "exact faint fancy fierce flat fluffy frail fresh gentle giddy glossy grand grim handy harsh hasty hollow humble "
    "idle jolly juicy keen lanky lavish level lively lofty loud lucky mellow merry mighty modest muddy narrow neat "
    "nimble noble odd pale plain polite prickly proud quaint quick quiet rapid rare ripe rough round rusty salty shaggy "
    "sharp shiny silent sleepy slim smooth sober solid sour spare steep stern stiff sturdy subtle sweet swift tame tart "
    "tender thick thirsty timid tiny tough vague vast vivid warm weary witty young zesty"
)

_NOUNS = (
    "acorn anchor apron badge bakery barrel basket beacon bell bench blanket bottle bridge broom bucket button cabin "
    "candle canoe carpet castle cello chalk cherry chimney clock cloud comet compass copper cradle crane cushion desk "
    "dolphin drum easel engine falcon feather fence ferry fiddle flute forest fountain garden ginger glacier glove "
    "guitar hammer harbor harp helmet hinge honey island jacket kettle kite ladder lantern lemon lizard locket magnet "
    "mango marble meadow mirror mitten needle oven paddle palace parcel parrot pebble pencil pepper piano pillow planet "
    "plum pocket quilt raft ribbon river saddle scarf shovel sparrow spoon statue summit table teapot temple thimble "
    "tiger tunnel turnip umbrella valley vessel violin wagon walnut whistle willow window zebra"
)


ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()


def key(rng: random.Random) -> str:
    """One of about 12,000 keys."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def keys(rng: random.Random, n: int) -> list[str]:
    """Different keys."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[key(rng)] = None
    return list(found)
