"""Public data sets in small: the shop of `import_files` as each of them lays its files out.

Layouts (names of files and columns, separators, forms of times, order of rows) are those of the published files; what
the files hold is invented.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from testing.sources.import_files import ROWS, TITLES, Files
from training.data.importing import parse_events

Row = tuple[int, int, int]
SHOP: list[Row] = [(int(user[1:]) + 1, int(item[1:]), time) for user, item, time in ROWS]
"""Number of the user (from 1), number of the item (from 0), and seconds since 1970."""
KINDS = ("Tools", "Cups", "Plates", "Spoons", "Hats", "Vases")


@dataclass(frozen=True)
class Layout:
    """One data set: its files, the ids that it gives to users and items, and whether it names titles.

    `asks`: how many questions the import has about them. `more`: items that nobody took. `options` are those that it
    needs beyond the answer yes.
    """

    files: Files
    user: Callable[[int], str]
    item: Callable[[int], str]
    titles: bool = True
    asks: int = 0
    more: int = 0
    options: dict[str, object] = field(default_factory=dict)

    def expected(self) -> dict[str, list[str]]:
        """What every user took, oldest first: titles, or ids where there are none."""
        found: dict[str, list[str]] = {}
        for user, item, _ in SHOP:
            found.setdefault(self.user(user), []).append(TITLES[item] if self.titles else self.item(item))
        return found


def _form(time: int, form: str) -> str:
    return datetime.fromtimestamp(time, UTC).strftime(form)


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _literals(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(f"{row!r}\n" for row in rows)


def _table(rows: Sequence[tuple[object, ...]], separator: str = ",", header: str = "") -> str:
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join([header, *lines] if header else lines) + "\n"


def _long(number: int, letters: str = "abcdefghijklmnopqrstuvwxyz0123456789") -> str:
    """An id of 22 characters, as services give them."""
    return "".join(letters[(number * 7 + at * (number + 3)) % len(letters)] for at in range(20)) + f"{number:02d}"


def _shuffled() -> list[Row]:
    """The rows in an order that tells nothing: most of these sets are not sorted by time."""
    return sorted(SHOP, key=lambda row: (row[1] * 7919 + row[0] * 104729 + row[2]) % 1009)


def yelp() -> Layout:
    """Yelp Open Dataset: reviews and businesses as JSON lines, categories in one text."""
    reviews = [
        {"review_id": _long(50 + at), "user_id": _long(u), "business_id": _long(90 + i), "stars": 4.0, "useful": 0,
         "funny": 0, "cool": 0, "text": "Nice place,\nreally.", "date": _form(t, "%Y-%m-%d %H:%M:%S")}
        for at, (u, i, t) in enumerate(_shuffled())
    ]  # fmt: skip
    businesses = [
        {"business_id": _long(90 + i), "name": title, "address": "1 Main St", "city": "Tucson", "state": "AZ",
         "postal_code": "85711", "latitude": 32.2, "longitude": -110.9, "stars": 3.5, "review_count": 22, "is_open": 0,
         "attributes": {"BusinessAcceptsCreditCards": "True"}, "categories": f"{KINDS[i]}, Shopping", "hours": None}
        for i, title in enumerate(TITLES)
    ]  # fmt: skip
    users = [
        {"user_id": _long(u), "name": "Ann", "review_count": 5, "yelping_since": "2007-01-25 16:47:26", "friends": "",
         "elite": "2007", "average_stars": 3.9}
        for u in range(1, 21)
    ]  # fmt: skip
    files: Files = {
        "yelp_academic_dataset_review.json": _lines(reviews),
        "yelp_academic_dataset_business.json": _lines(businesses),
        "yelp_academic_dataset_user.json": _lines(users),
    }
    return Layout(files, _long, lambda i: _long(90 + i))


def gowalla() -> Layout:
    """Gowalla (SNAP): check-ins without a header, newest first."""
    rows = [(u, _form(t, "%Y-%m-%dT%H:%M:%SZ"), 30.2359091167, -97.7951395833, 22847 + i)
            for u, i, t in sorted(SHOP, key=lambda row: (row[0], -row[2]))]  # fmt: skip
    return Layout({"loc-gowalla_totalCheckins.txt": _table(rows, "\t")}, str, lambda i: str(22847 + i), False, 1)


def foursquare() -> Layout:
    """Foursquare (TSMC 2014, New York): check-ins without a header, Twitter's dates, Latin-1."""
    rows = [(u, f"4bf58dd8d48988d12795173{i}", f"4bf58dd8d48988d1f293{i % 2}", f"Café & {KINDS[i % 2]}", 40.7, -74.0,
             -240, _form(t, "%a %b %d %H:%M:%S +0000 %Y"))
            for u, i, t in sorted(SHOP, key=lambda row: row[2])]  # fmt: skip
    content = _table(rows, "\t").encode("latin-1")
    return Layout({"dataset_TSMC2014_NYC.txt": content}, str, lambda i: f"4bf58dd8d48988d12795173{i}", False, 1)


def steam() -> Layout:
    """Steam purchases and hours (Kaggle): no header, no times, the game by its name."""
    rows = [(151603712 + u, f'"{TITLES[i]}"', kind, value, 0)
            for u, i, _ in SHOP for kind, value in (("purchase", 1.0), ("play", 27.5))]  # fmt: skip
    return Layout(
        {"steam-200k.csv": _table(rows)},
        lambda u: str(151603712 + u),
        lambda i: TITLES[i],
        asks=1,
        options={"events": parse_events("purchase")},
    )


def food() -> Layout:
    """Food.com (Kaggle): interactions by day and recipes whose lists are texts of Python."""
    day = 86_400
    rows = [(u, 40893 + i, _form(day * (15_000 + step % 5), "%Y-%m-%d"), 4, '"Great, ""really""."')
            for step, (u, i, _) in enumerate(SHOP)]  # fmt: skip
    recipes = [(title, 40893 + i, 55, 47892, "2005-09-16", "\"['30-minutes', 'main']\"", '"[51.5, 0.0]"', 2,
                "\"['mix', 'bake, slowly']\"", '"a ""simple"" one,\nfor all"', "\"['flour', 'salt']\"", 2)
               for i, title in enumerate(TITLES)]  # fmt: skip
    files: Files = {
        "RAW_interactions.csv": _table(rows, header="user_id,recipe_id,date,rating,review"),
        "RAW_recipes.csv": _table(
            recipes,
            header="name,id,minutes,contributor_id,submitted,tags,nutrition,n_steps,steps,description,ingredients,n_ingredients",
        ),
    }
    return Layout(files, str, lambda i: str(40893 + i))


def beers() -> Layout:
    """BeerAdvocate reviews: one table with all columns of beers, users by name."""
    rows = [(10325, "Vecchio Birraio", t, 4.5, 4, 4, f"taster{u}", KINDS[i], 4, 4.5, TITLES[i], 5, 47986 + i)
            for u, i, t in _shuffled()]  # fmt: skip
    header = (
        "brewery_id,brewery_name,review_time,review_overall,review_aroma,review_appearance,review_profilename,"
        "beer_style,review_palate,review_taste,beer_name,beer_abv,beer_beerid"
    )
    return Layout({"beer_reviews.csv": _table(rows, header=header)}, lambda u: f"taster{u}", lambda i: str(47986 + i))


def netflix() -> Layout:
    """Netflix Prize: ratings below the number of their film, and films in Latin-1 without a header."""
    day = 86_400
    days = {(u, i): _form(day * (13_000 + at % 5), "%Y-%m-%d") for at, (u, i, _) in enumerate(SHOP)}
    blocks = [f"{i + 1}:\n" + "".join(f"{1488844 + u},{3 + u % 2},{days[u, i]}\n" for u, other, _ in SHOP if other == i)
              for i in range(len(TITLES))]  # fmt: skip
    films = "".join(f"{i + 1},200{i},{title}\n" for i, title in enumerate(TITLES)) + "7,1999,Café, the\n"
    files: Files = {"combined_data_1.txt": "".join(blocks), "movie_titles.csv": films.encode("latin-1")}
    return Layout(files, lambda u: str(1488844 + u), lambda i: str(i + 1), asks=2, more=1)


def songs() -> Layout:
    """Million Song Dataset, taste profiles: counts of plays without a header or times, songs divided by `<SEP>`."""
    triplets = [(_long(u, "0123456789abcdef"), f"SOAKIMP12A8C13099{i}", 1 + i) for u, i, _ in SHOP]
    tracks = [(f"TRMMMYQ128F932D90{i}", f"SOAKIMP12A8C13099{i}", "Some Band", title) for i, title in enumerate(TITLES)]
    files: Files = {"train_triplets.txt": _table(triplets, "\t"), "unique_tracks.txt": _table(tracks, "<SEP>")}
    return Layout(files, lambda u: _long(u, "0123456789abcdef"), lambda i: f"SOAKIMP12A8C13099{i}", asks=2)


def goodreads() -> Layout:
    """Goodreads (UCSD): reviews with Twitter's dates in another zone, and books with shelves."""
    reviews = [
        {"user_id": f"8842281e1d1347389f2ab93d60773d{u:02d}", "book_id": str(24375660 + i), "review_id": _long(40 + at),
         "rating": 5, "review_text": "Mind blowing.", "date_added": _form(t, "%a %b %d %H:%M:%S -0700 %Y"),
         "date_updated": _form(t + 99, "%a %b %d %H:%M:%S -0700 %Y"), "read_at": "", "started_at": "", "n_votes": 0,
         "n_comments": 0}
        for at, (u, i, t) in enumerate(_shuffled())
    ]  # fmt: skip
    books = [
        {"isbn": "", "text_reviews_count": "1", "series": [], "country_code": "US", "language_code": "eng",
         "popular_shelves": [{"count": "3", "name": "to-read"}, {"count": "1", "name": KINDS[i]}], "asin": "",
         "is_ebook": "false", "average_rating": "4.00", "kindle_asin": "", "similar_books": [],
         "description": "A book.", "format": "Paperback", "link": "https://example.org",
         "authors": [{"author_id": "604031", "role": ""}], "publisher": "Press", "num_pages": "256",
         "book_id": str(24375660 + i), "work_id": "5400751", "title": title, "title_without_series": title}
        for i, title in enumerate(TITLES)
    ]  # fmt: skip
    files: Files = {"goodreads_reviews_poetry.json": _lines(reviews), "goodreads_books_poetry.json": _lines(books)}
    return Layout(files, lambda u: f"8842281e1d1347389f2ab93d60773d{u:02d}", lambda i: str(24375660 + i))


def steam_bundles() -> Layout:
    """Steam users and their games (UCSD): a Python literal a line, with a list of games a user."""
    rows = [
        {"user_id": f"player_{u}", "items_count": 5, "steam_id": str(76561197970982479 + u), "user_url": "http://x",
         "items": [{"item_id": str(10 + i), "item_name": TITLES[i], "playtime_forever": 6, "playtime_2weeks": 0}
                   for other, i, _ in SHOP if other == u]}
        for u in range(1, 21)
    ]  # fmt: skip
    return Layout(
        {"australian_users_items.json": _literals(rows)}, lambda u: f"player_{u}", lambda i: str(10 + i), asks=1
    )


def epinions() -> Layout:
    """Epinions: user, item and rating with spaces between them, and who trusts whom."""
    rows = [(u, 100 + i, 1 + i % 5) for u, i, _ in SHOP]
    files: Files = {"ratings_data.txt": _table(rows, " "), "trust_data.txt": " 1 2 1\n 2 3 1\n"}
    return Layout(files, str, lambda i: str(100 + i), False, 1)


def lastfm() -> Layout:
    """Last.fm 360K: plays of artists without a header or times, and profiles."""
    rows = [(_long(u, "0123456789abcdef"), f"3bd73256-3905-4f3a-97e2-8b341527f80{i}", TITLES[i], 2137 - i)
            for u, i, _ in SHOP]  # fmt: skip
    profiles = [(_long(u, "0123456789abcdef"), "f", 22, "Germany", "Feb 1, 2007") for u in range(1, 21)]
    files: Files = {"usersha1-artmbid-artname-plays.tsv": _table(rows, "\t"),
                    "usersha1-profile.tsv": _table(profiles, "\t")}  # fmt: skip
    return Layout(
        files, lambda u: _long(u, "0123456789abcdef"), lambda i: f"3bd73256-3905-4f3a-97e2-8b341527f80{i}", asks=1
    )


def rented() -> Layout:
    """Rent the Runway (UCSD): names of columns with spaces, dates in words, no titles."""
    day = 86_400
    rows = [
        {"fit": "fit", "user_id": str(420272 + u), "bust size": "34d", "item_id": str(2260466 + i), "weight": "137lbs",
         "rating": "10", "rented for": "vacation", "review_text": "Lovely.", "body type": "hourglass",
         "review_summary": "So many compliments!", "category": KINDS[i].lower(), "height": "5' 8\"", "size": 14,
         "age": "28", "review_date": _form(day * (17_000 + at % 5), "%B %d, %Y")}
        for at, (u, i, _) in enumerate(SHOP)
    ]  # fmt: skip
    return Layout(
        {"renttherunway_final_data.json": _lines(rows)}, lambda u: str(420272 + u), lambda i: str(2260466 + i), False
    )


def google() -> Layout:
    """Google Local (UCSD): reviews with milliseconds, and places with lists of categories."""
    reviews = [
        {"user_id": str(101463350189962023774 + u), "name": "Ann B", "time": 1000 * t + 7, "rating": 5, "text": None,
         "pics": None, "resp": None, "gmap_id": f"0x80dd2b4c8555edb7:0xfc33d65c4bdbef4{i}"}
        for u, i, t in _shuffled()
    ]  # fmt: skip
    places = [
        {"name": title, "address": f"{title}, 1 Main St, HI", "gmap_id": f"0x80dd2b4c8555edb7:0xfc33d65c4bdbef4{i}",
         "description": None, "latitude": 21.3, "longitude": -157.8, "category": [KINDS[i], "Store"], "avg_rating": 4.4,
         "num_of_reviews": 18, "price": "$", "hours": [["Monday", "9AM-5PM"]], "MISC": {"Payments": ["Cash"]},
         "state": "Open", "relative_results": None, "url": "https://example.org"}
        for i, title in enumerate(TITLES)
    ]  # fmt: skip
    files: Files = {"review-Hawaii.json": _lines(reviews), "meta-Hawaii.json": _lines(places)}
    return Layout(files, lambda u: str(101463350189962023774 + u), lambda i: f"0x80dd2b4c8555edb7:0xfc33d65c4bdbef4{i}")


def playlists() -> Layout:
    """Spotify Million Playlist Dataset: one JSON object with playlists, and their tracks in order."""
    lists = [
        {"name": "Throwbacks", "collaborative": "false", "pid": u, "modified_at": 1493424000, "num_tracks": 5,
         "num_albums": 5, "num_followers": 1,
         "tracks": [{"pos": pos, "artist_name": "Some Band", "track_uri": f"spotify:track:0UaMYEvWZi0ZqiDOoHU3Y{i}",
                     "artist_uri": "spotify:artist:2wIVse2owClT7go1WT98tk", "track_name": TITLES[i],
                     "album_uri": "spotify:album:6vV5UrXcfyQD1wu4Qo2I9K", "duration_ms": 226863, "album_name": "One"}
                    for pos, (_, i, _) in enumerate(row for row in SHOP if row[0] == u)],
         "num_edits": 6, "duration_ms": 11532414, "num_artists": 1}
        for u in range(1, 21)
    ]  # fmt: skip
    content = {
        "info": {"generated_on": "2017-12-03 08:41:42.057563", "slice": "0-999", "version": "v1"},
        "playlists": lists,
    }
    return Layout(
        {"mpd.slice.0-999.json": json.dumps(content, indent=4)},
        str,
        lambda i: f"spotify:track:0UaMYEvWZi0ZqiDOoHU3Y{i}",
        asks=1,
    )


def xing() -> Layout:
    """XING (RecSys Challenge 2016): tabs, kinds as numbers, titles as numbers of words."""
    rows = [(u, 2000 + i, 1 + at % 2, t) for at, (u, i, t) in enumerate(_shuffled())]
    items = [(2000 + i, f"1{i},77", 3, 17, 9, "de", 6, 52.6, 13.4, 1, "4,5", 1432245600, 1) for i in range(len(TITLES))]
    files: Files = {
        "interactions.csv": _table(rows, "\t", "user_id\titem_id\tinteraction_type\tcreated_at"),
        "items.csv": _table(
            items,
            "\t",
            "id\ttitle\tcareer_level\tdiscipline_id\tindustry_id\tcountry\tregion\tlatitude\tlongitude\temployment\ttags\t"
            "created_at\tactive_during_test",
        ),
    }
    return Layout(files, str, lambda i: str(2000 + i), False, options={"events": parse_events("all")})


def tianchi() -> Layout:
    """Alibaba mobile (Tianchi 2015): kinds as numbers, times by the hour."""
    rows = [(10001082 + u, 285259775 + i, 1, "97lk14c", 4076 + i, _form(3600 * (393_900 + at % 5), "%Y-%m-%d %H"))
            for at, (u, i, _) in enumerate(SHOP)]  # fmt: skip
    header = "user_id,item_id,behavior_type,user_geohash,item_category,time"
    return Layout(
        {"tianchi_mobile_recommend_train_user.csv": _table(rows, header=header)},
        lambda u: str(10001082 + u), lambda i: str(285259775 + i), False,
    )  # fmt: skip


def tafeng() -> Layout:
    """Ta-Feng groceries: quoted, American days, ids with zeros in front, no titles."""
    day = 86_400
    rows = [(f'"{_form(day * (11_300 + at % 5), "%m/%d/%Y").lstrip("0")}"', f'"{1104905 + u:08d}"', '"45-49 "', '"115"',
             f'"1105{i}1"', f'"471008100005{i}"', '"2"', '"24"', '"30"')
            for at, (u, i, _) in enumerate(SHOP)]  # fmt: skip
    names = "TRANSACTION_DT CUSTOMER_ID AGE_GROUP PIN_CODE PRODUCT_SUBCLASS PRODUCT_ID AMOUNT ASSET SALES_PRICE"
    header = ",".join(f'"{name}"' for name in names.split())
    return Layout(
        {"ta_feng_all_months_merged.csv": _table(rows, header=header)},
        lambda u: f"{1104905 + u:08d}", lambda i: f"471008100005{i}", False,
    )  # fmt: skip


def diginetica() -> Layout:
    """Diginetica (CIKM 2016): sessions whose user is nearly always `NA`, a clock within the session and a day."""
    rows = [(u, "NA", 81766 + i, 526309 + 1000 * at, "2016-05-09") for at, (u, i, _) in enumerate(SHOP)]
    names = [(81766 + i, 139, f"{77},{i}") for i in range(len(TITLES))]
    files: Files = {
        "train-item-views.csv": _table(rows, ";", "sessionId;userId;itemId;timeframe;eventdate"),
        "products.csv": _table(names, ";", "itemId;pricelog2;product.name.tokens"),
    }
    return Layout(files, str, lambda i: str(81766 + i), False)


def globo() -> Layout:
    """Globo.com news: clicks by the hour in several files, users and sessions, milliseconds."""
    header = (
        "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
        "click_deviceGroup,click_os,click_country,click_region,click_referrer_type"
    )
    rows = [(u, 1506825423271737 + u, 1506825423000, 5, 157541 + i, 1000 * t, 4, 3, 20, 1, 20, 2) for u, i, t in SHOP]
    articles = [(157541 + i, 281 + i, 1513144419000, 0, 168) for i in range(len(TITLES))]
    files: Files = {
        "clicks/clicks_hour_000.csv": _table(rows[:50], header=header),
        "clicks/clicks_hour_001.csv": _table(rows[50:], header=header),
        "articles_metadata.csv": _table(
            articles, header="article_id,category_id,created_at_ts,publisher_id,words_count"
        ),
    }
    return Layout(files, str, lambda i: str(157541 + i), False, 1)


def amazon_m2() -> Layout:
    """Amazon-M2 (KDD Cup 2023): a session a row without a user, its items as NumPy prints a list."""
    took = [[f"B09W9FND7{i}" for user, i, _ in SHOP if user == u] for u in range(1, 21)]
    rows = [("\"['" + "'\n '".join(items[:-1]) + "']\"", items[-1], "DE") for items in took]
    names = [
        (f"B09W9FND7{i}", locale, title, 30.95, "Oriel") for locale in ("DE", "UK") for i, title in enumerate(TITLES)
    ]
    files: Files = {
        "sessions_train.csv": _table(rows, header="prev_items,next_item,locale"),
        "products_train.csv": _table(names, header="id,locale,title,price,brand"),
    }
    return Layout(files, str, lambda i: f"B09W9FND7{i}", asks=2)


def adressa() -> Layout:
    """Adressa news: JSON lines whose `id` is the article's, beside the user and a profile of objects."""
    profile = [{"item": "sport", "groups": [{"group": "taxonomy", "count": 3, "weight": 1.0}]}]
    rows = [
        {"profile": profile, "eventId": 1000 + at, "city": "oslo", "url": f"http://example.org/{i}?x={at}",
         "id": f"ab{i:06d}", "userId": f"cx:{u:012d}", "publishtime": "2016-12-30T22:21:55.000Z", "time": t,
         "title": TITLES[i], "category1": "nyheter|sport"}
        for at, (u, i, t) in enumerate(_shuffled())
    ]  # fmt: skip
    return Layout({"20170101": _lines(rows)}, lambda u: f"cx:{u:012d}", lambda i: f"ab{i:06d}", asks=1)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "Yelp": yelp, "Gowalla": gowalla, "Foursquare": foursquare, "Steam": steam, "Food.com": food, "BeerAdvocate": beers,
    "Netflix Prize": netflix, "Million Song": songs, "Goodreads": goodreads, "Steam bundles": steam_bundles,
    "Epinions": epinions, "Last.fm 360K": lastfm, "Rent the Runway": rented, "Google Local": google,
    "Million Playlist": playlists, "XING": xing, "Tianchi mobile": tianchi, "Ta-Feng": tafeng, "Diginetica": diginetica,
    "Globo.com": globo, "Amazon-M2": amazon_m2, "Adressa": adressa,
}  # fmt: skip
