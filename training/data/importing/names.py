"""Names that people give to columns, by role. Case, spaces, punctuation and types behind a colon do not count."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping

_NAMES: dict[str, str] = {
    "user": (
        "user_id user userid uid reviewer_id visitor_id visitor customer_id customer client_id member_id "
        "member account_id user_code user_name username reviewer profile_name review_profilename player_id listener_id "
        "reader_id household_key household_id playlist_id session_id session sess_id 用户id 用户 用户编号 "
        "用户_id 会员id 会员 会员编号 ユーザーid ユーザー ユーザid 会員番号 会員id 会員 顧客id 顧客番号 "
        "顧客 利用者id 利用者"
    ),
    "item": (
        "item_id item itemid iid parent_asin asin product_id product movie_id film_id artist_id song_id "
        "track_id book_id isbn article_id news_id stock_code sku goods_id video_id anime_id game_id app_id "
        "business_id venue_id poi_id location_id recipe_id streamer_id listing_id gmap_id msno_item aid beer_id "
        "sku_id bookmark_id beer_beerid wine_id hotel_id restaurant_id place_id job_id course_id track_uri "
        "item_ids items itemids product_ids article_ids movie_ids item_id_list item_seq history sequence "
        "basket 商品id 商品 商品番号 商品编号 商品コード 商品_id 物品id 品番 アイテムid アイテム 作品id"
    ),
    "time": (
        "timestamp time unix_review_time ts timestamps datetime date_time date event_time eventdate "
        "event_date created_at createdat created order_date order_time ordered_at purchase_date "
        "purchased_at invoice_date t_dat review_time interaction_time view_date viewed_at watched_at "
        "utc_time utctime local_time posted_at published_at submission_time play_time listened_at rated_at "
        "review_date date_added added_at transaction_date transaction_time transaction_dt 时间 "
        "时间戳 行为时间 购买日期 下单时间 日時 日付 時刻 購入日 購入日時 注文日 注文日時 閲覧日時 "
        "タイムスタンプ"
    ),
    "rating": "rating overall stars score book_rating review_overall review_score user_rating 评分 評価 点数",
    "event": (
        "event event_type behavior behavior_type behaviour action action_type interaction_type type "
        "feedback_type 行为类型 行为 种类 行動 種別 イベント 操作"
    ),
    "split": "split part partition",
    "review": "review_text review reviewbody review_body text comment body 评论 レビュー レビュー本文",
    "summary": "summary review_title review_headline review_summary headline 件名",
    "title": (
        "title name item_title item_name product_name product_title prod_name movie_title book_title "
        "song_name track_name song_title track_title artist_name anime_title game_title game_name app_name "
        "original_title business_name restaurant_name beer_name wine_name hotel_name place_name job_title "
        "course_name recipe_name bookmark_title caption 商品名 商品名称 标题 名称 タイトル 名前 作品名 品名 题目"
    ),
    "categories": (
        "categories category genres genre class tags subject item_category category_name main_category "
        "category_id product_type_name product_group_name department tag_list cuisines beer_style cate type "
        "类型 类别 类目 分类 カテゴリ カテゴリー ジャンル 分類"
    ),
    "brand": (
        "brand brand_name store manufacturer maker artist artist_name author authors book_author publisher "
        "developer studio brewery_name 品牌 ブランド メーカー 著者"
    ),
    "description": (
        "description detail_desc desc item_description product_description abstract overview plot synopsis "
        "caption summary_text 描述 简介 説明 商品説明 概要 紹介"
    ),
    "price": "price unit_price unitprice list_price amount_price 价格 单价 価格 単価 値段",
    "attributes": "attributes features feature details properties specs 属性 特徴",
}
ONLY_BESIDE_TEXT = "id"
"""The name of an item's id in a table of items, and of nothing that is certain elsewhere."""
LISTS = frozenset(
    ("itemids", "items", "productids", "articleids", "movieids", "itemidlist", "itemseq", "history", "sequence")
)
"""Folded names of columns whose cells hold all items of a user."""


def folded(name: str) -> str:
    """A name of a column as it is compared."""
    name = unicodedata.normalize("NFKC", name).strip().casefold()
    return re.sub(r"[\W_]+", "", re.sub(r":(token|float)(_seq)?$", "", name))


ALIASES: Mapping[str, tuple[str, ...]] = {
    role: tuple(dict.fromkeys(folded(name) for name in names.split())) for role, names in _NAMES.items()
}
_KNOWN = {name for names in ALIASES.values() for name in names} | {ONLY_BESIDE_TEXT}


def is_known(name: str) -> bool:
    """Whether some role has this name, or the name tells a type as RecBole writes it."""
    return folded(name) in _KNOWN or bool(re.search(r":(token|float)(_seq)?$", name))


def by_name(columns: Iterable[str], is_empty: Callable[[str], bool] | None = None) -> dict[str, str]:
    """The column of each role that a table has by its names; a column has one role, the earlier in the list.

    Where several columns have a name for a role, one that `is_empty` says has nothing in it comes after the others.
    """
    at_hand = {folded(column): column for column in reversed([*columns])}
    found: dict[str, str] = {}
    for role, names in ALIASES.items():
        held = [name for name in names if name in at_hand]
        if is_empty is not None and len(held) > 1:
            held.sort(key=lambda name: is_empty(at_hand[name]))
        if held:
            found[role] = at_hand.pop(held[0])
    return found


def by_ending(columns: Iterable[str], roles: Iterable[str]) -> dict[str, str]:
    """The first column for each role whose name ends, from a word on, with a name for it: `click_article_id`."""
    found: dict[str, str] = {}
    left = [*columns]
    for role in roles:
        names = {*ALIASES[role]} - LISTS
        column = next((column for column in left if ends_with(column, names)), None)
        if column is not None:
            found[role] = column
            left.remove(column)
    return found


def ends_with(column: str, names: Collection[str]) -> bool:
    """Whether the name of a column ends, from its second word on or later, with one of these folded names."""
    words = _words(column)
    return any("".join(words[start:]) in names for start in range(1, len(words)))


def _words(name: str) -> list[str]:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", unicodedata.normalize("NFKC", name).strip())
    return [word for word in re.split(r"[\W_]+", parts.casefold()) if word]
