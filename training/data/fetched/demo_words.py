"""Words of the demo catalog: invented stories with a genre (told by the noun) and a mood (told by the adjective).

The lists share no word, so that a title tells both; publishers are named nowhere in a title, so that only
who reads what can tell them.
"""

from __future__ import annotations

GENRES: dict[str, str] = {
    "Mystery": "Ledger Alibi Witness Cipher Keyhole Locket Verdict Shadow Footprint Telegram Inspector Dossier",
    "Space": "Comet Orbit Airlock Nebula Starship Colony Eclipse Satellite Meteor Launchpad Cosmonaut Pulsar",
    "Romance": "Sweetheart Bouquet Wedding Valentine Courtship Serenade Embrace Bride Waltz Confession Proposal Kiss",
    "Fantasy": "Dragon Wizard Amulet Griffin Sorcerer Potion Goblin Unicorn Spellbook Castle Oracle Phoenix",
    "Kitchen": "Bakery Recipe Teapot Orchard Dumpling Skillet Spice Pantry Noodle Marmalade Chef Soup",
    "Nature": "Glacier Meadow Otter Forest River Falcon Canyon Wolf Reef Moss Heron Lagoon",
    "History": "Emperor Cathedral Regiment Treaty Dynasty Gladiator Pharaoh Chronicle Archer Senate Caravan Viking",
    "Music": "Violin Quartet Jukebox Opera Drummer Ballad Piano Encore Trumpet Chorus Melody Bandstand",
}

MOODS: dict[str, str] = {
    "cozy": "Cozy Snug Gentle Homely Mellow Tender Warm Sunny Soft Friendly",
    "dark": "Dark Grim Haunted Bleak Sinister Hollow Cursed Bitter Gloomy Forsaken",
    "funny": "Funny Clumsy Silly Merry Bumbling Giddy Cheeky Ridiculous Wobbly Absurd",
    "epic": "Epic Mighty Grand Boundless Heroic Titanic Golden Eternal Glorious Colossal",
    "quiet": "Quiet Silent Hushed Slow Pale Still Lonely Patient Distant Solemn",
    "wild": "Wild Reckless Burning Stormy Fierce Roaring Savage Restless Blazing Untamed",
}

PUBLISHERS = [
    "Alder & Finch",
    "Bramble House",
    "Copperline",
    "Dovecote",
    "Eastwick",
    "Fernhill",
    "Gable Street",
    "Harrow Lane",
    "Inkwell",
    "Juniper Row",
    "Kestrel",
    "Lanternfish",
    "Marrow & Pine",
    "Northgate",
    "Oak & Thimble",
    "Pebble Press",
    "Quillon",
    "Redstart",
    "Saltmarsh",
    "Tidewater",
    "Umber",
    "Vesper",
    "Willowherb",
    "Yarrow",
]

PRAISE = ("could not stop", "read it twice", "what an ending", "stayed up late", "told all my friends")
BLAME = ("lost me halfway", "too long for me", "not my kind", "expected more", "did not finish")
