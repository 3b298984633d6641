"""The words that the sample shop is made of: names, cities, goods, comments. All invented."""

# ruff: noqa: SIM905 (a list of words reads better as one string)

SURNAMES = "김 이 박 최 정 강 조 윤 장 임 한 오 서 신 권 황 안 송 전 홍".split()
GIVEN_NAMES = (
    "민준 서준 도윤 예준 시우 하준 지호 주원 지후 준우 서연 서윤 지우 서현 하은 하윤 민서 지유 "
    "윤서 채원 수아 지민 지아 다은 은우 현우 건우 우진 선우 유진 민재 정우 승현 수빈 예린 소율 "
    "나은 태윤 재원 가온"
).split()
ENGLISH_GIVEN = (
    "Emma Liam Olivia Noah Ava Lucas Mia Ethan Chloe Daniel Grace Henry Lily Oscar Ruby Victor"
).split()
ENGLISH_SURNAMES = (
    "Smith Brown Taylor Wilson Clark Walker Young King Baker Hill Cooper Reed".split()
)

# (city, weight): large cities have more customers.
CITIES = (
    ("서울", 30),
    ("부산", 16),
    ("인천", 11),
    ("대구", 9),
    ("대전", 7),
    ("광주", 6),
    ("수원", 6),
    ("울산", 5),
    ("전주", 4),
    ("제주", 4),
    ("춘천", 2),
)

# (name, city, kind, floor area in m², opening date)
STORES = (
    ("강남점", "서울", "플래그십", 1850, "2015-03-02"),
    ("홍대점", "서울", "일반", 640, "2016-07-15"),
    ("잠실점", "서울", "일반", 920, "2017-11-03"),
    ("성수점", "서울", "팝업", 210, "2022-09-01"),
    ("해운대점", "부산", "플래그십", 1420, "2016-05-20"),
    ("서면점", "부산", "일반", 780, "2018-02-10"),
    ("송도점", "인천", "아울렛", 2300, "2019-10-25"),
    ("부평점", "인천", "일반", 560, "2020-06-12"),
    ("동성로점", "대구", "일반", 690, "2017-04-08"),
    ("둔산점", "대전", "일반", 610, "2018-08-30"),
    ("상무점", "광주", "일반", 540, "2019-03-14"),
    ("광교점", "수원", "아울렛", 2050, "2021-01-22"),
    ("삼산점", "울산", "일반", 480, "2020-11-05"),
    ("한옥마을점", "전주", "팝업", 180, "2023-04-01"),
    ("노형점", "제주", "일반", 450, "2021-07-17"),
    ("공항점", "제주", "팝업", 150, "2023-08-11"),
)

# (name, country, contact person or None, contract date, reliability score)
SUPPLIERS = (
    ("한빛상사", "Korea", "김도현", "2014-02-11", 92),
    ("가람물산", "Korea", "박세린", "2015-06-30", 88),
    ("다온유통", "Korea", "이하람", "2016-01-19", 75),
    ("미르산업", "Korea", "최건", "2017-09-05", 81),
    ("늘봄식품", "Korea", None, "2018-03-27", 95),
    ("온새미로", "Korea", "정소담", "2019-12-02", 69),
    ("Norden Supply", "Germany", "Anna Vogel", "2016-10-14", 90),
    ("Rheinwerk", "Germany", "Jonas Beck", "2018-05-21", 84),
    ("Pacific Traders", "USA", "Mark Rivera", "2015-08-08", 78),
    ("Blue Harbor", "USA", None, "2020-02-17", 63),
    ("Granite Goods", "USA", "Sarah Cole", "2021-11-30", 71),
    ("Sakura Works", "Japan", "Yuki Mori", "2014-07-01", 97),
    ("Kita Seiki", "Japan", "Ren Ando", "2017-03-16", 86),
    ("Minato Foods", "Japan", None, "2019-05-09", 80),
    ("Mekong Craft", "Vietnam", "Linh Tran", "2020-08-24", 74),
    ("Saigon Textile", "Vietnam", "Minh Pham", "2022-04-13", 66),
    ("Jade River", "China", "Wei Zhang", "2018-12-20", 72),
    ("Golden Lotus", "China", None, "2021-06-06", 58),
    ("Milano Moda", "Italy", "Luca Ferri", "2019-09-18", 83),
    ("Toscana Casa", "Italy", "Elena Riva", "2023-02-28", 77),
)

# category: (section, goods, lowest price, highest price in won, heaviest in grams)
CATEGORIES: dict[str, tuple[str, str, int, int, int]] = {
    "노트북": ("전자", "울트라북,게이밍 노트북,업무용 노트북", 690_000, 2_900_000, 2400),
    "오디오": ("전자", "무선 이어폰,헤드폰,블루투스 스피커", 29_000, 450_000, 1800),
    "주변기기": ("전자", "무선 키보드,게이밍 마우스,웹캠,USB 허브", 12_000, 190_000, 900),
    "생활가전": ("전자", "가습기,공기청정기,무선 청소기,제습기", 59_000, 890_000, 9000),
    "주방용품": ("생활", "프라이팬,텀블러,칼 세트,도마", 9_000, 180_000, 2600),
    "침구": ("생활", "이불,베개,매트리스 커버", 19_000, 320_000, 3800),
    "조명": ("생활", "스탠드 조명,무드등,LED 전구", 8_000, 240_000, 4200),
    "가구": ("생활", "책상,의자,책장,수납장", 49_000, 780_000, 32_000),
    "커피": ("식품", "원두,드립백,콜드브루", 7_000, 49_000, 1000),
    "간식": ("식품", "쿠키,견과 세트,초콜릿", 4_000, 38_000, 900),
    "건강식품": ("식품", "홍삼 스틱,비타민,유산균", 12_000, 160_000, 800),
    "차": ("식품", "녹차,홍차,보이차", 6_000, 72_000, 500),
    "상의": ("패션", "셔츠,니트,티셔츠", 15_000, 190_000, 700),
    "아우터": ("패션", "패딩,코트,재킷", 59_000, 690_000, 1900),
    "신발": ("패션", "운동화,구두,샌들", 29_000, 290_000, 1200),
    "가방": ("패션", "백팩,토트백,크로스백", 25_000, 420_000, 1500),
    "캠핑": ("레저", "텐트,침낭,랜턴,캠핑 의자", 18_000, 650_000, 14_000),
    "자전거": ("레저", "로드 자전거,헬멧,자전거 라이트", 21_000, 1_900_000, 13_000),
    "문구": ("취미", "만년필,노트,다이어리", 3_000, 150_000, 600),
    "보드게임": ("취미", "전략 게임,퍼즐,카드 게임", 11_000, 98_000, 2200),
}

BRANDS = (
    "가온 다솜 하루 미르 누리 온새 Norden Lumi Orca Vantage Pinecone Halla Mori Kestrel".split()
)

# comment by rating; a review may also have none.
COMMENTS: dict[int, tuple[str, ...]] = {
    1: ("배송 중에 파손됐어요", "설명과 달라요", "Stopped working after a week"),
    2: ("가격에 비해 아쉬워요", "마감이 거칠어요", "Smaller than expected"),
    3: ("무난해요", "보통이에요", "Does the job"),
    4: ("디자인이 예뻐요", "배송이 빨라요", "Good value", "만족합니다"),
    5: ("재구매 의사 있어요", "강력 추천합니다", "Excellent quality", "선물했더니 좋아해요"),
}
