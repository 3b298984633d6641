"""The tables of the sample shop; a comment holds a name's English and Korean display names."""

SCHEMA = """
CREATE TABLE categories ( -- category / 카테고리, 분류
  id INTEGER PRIMARY KEY, -- id / 번호
  name TEXT NOT NULL UNIQUE, -- name / 이름
  section TEXT NOT NULL -- section / 구분
);

CREATE TABLE suppliers ( -- supplier, vendor / 공급업체, 거래처
  id INTEGER PRIMARY KEY, -- id / 번호
  name TEXT NOT NULL UNIQUE, -- name / 이름
  country TEXT NOT NULL, -- country / 국가
  contact TEXT, -- contact person / 담당자
  contracted_on DATE NOT NULL, -- contract date / 계약일
  score INTEGER NOT NULL -- reliability score / 신뢰도
);

CREATE TABLE products ( -- product / 상품, 제품
  id INTEGER PRIMARY KEY, -- id / 번호
  name TEXT NOT NULL UNIQUE, -- name / 이름
  brand TEXT NOT NULL, -- brand / 브랜드
  category_id INTEGER NOT NULL REFERENCES categories (id), -- category id / 카테고리 번호
  supplier_id INTEGER NOT NULL REFERENCES suppliers (id), -- supplier id / 공급업체 번호
  price INTEGER NOT NULL, -- price / 가격
  stock INTEGER NOT NULL, -- stock / 재고, 재고량
  weight INTEGER, -- weight / 무게
  launched_on DATE NOT NULL -- launch date, release date / 출시일
);

CREATE TABLE stores ( -- store, shop / 매장, 점포
  id INTEGER PRIMARY KEY, -- id / 번호
  name TEXT NOT NULL UNIQUE, -- name / 이름
  city TEXT NOT NULL, -- city / 도시
  kind TEXT NOT NULL, -- type / 유형, 종류
  area INTEGER NOT NULL, -- floor area / 면적
  opened_on DATE NOT NULL, -- opening date / 개점일
  phone TEXT NOT NULL -- phone / 전화번호
);

CREATE TABLE employees ( -- employee / 직원
  id INTEGER PRIMARY KEY, -- id / 번호
  name TEXT NOT NULL, -- name / 이름
  store_id INTEGER NOT NULL REFERENCES stores (id), -- store id / 매장 번호
  manager_id INTEGER REFERENCES employees (id), -- manager id / 상사 번호
  position TEXT NOT NULL, -- position, job title / 직급, 직책
  salary INTEGER NOT NULL, -- salary, pay / 급여, 연봉
  hired_on DATE NOT NULL -- hire date / 입사일, 채용일
);

CREATE TABLE customers ( -- customer, client / 고객, 회원
  id INTEGER PRIMARY KEY, -- id / 번호
  name TEXT NOT NULL, -- name / 이름
  gender TEXT NOT NULL, -- gender / 성별
  city TEXT NOT NULL, -- city / 도시
  birth_date DATE NOT NULL, -- birth date, birthday / 생년월일, 생일
  grade TEXT NOT NULL, -- grade, tier / 등급
  points INTEGER NOT NULL, -- points / 포인트, 적립금
  email TEXT, -- email / 이메일
  phone TEXT NOT NULL, -- phone / 전화번호
  joined_on DATE NOT NULL -- join date, signup date / 가입일
);

CREATE TABLE orders ( -- order, purchase / 주문
  id INTEGER PRIMARY KEY, -- id / 번호
  customer_id INTEGER NOT NULL REFERENCES customers (id), -- customer id / 고객 번호
  store_id INTEGER NOT NULL REFERENCES stores (id), -- store id / 매장 번호
  employee_id INTEGER REFERENCES employees (id), -- employee id / 직원 번호
  ordered_on DATE NOT NULL, -- order date / 주문일
  status TEXT NOT NULL, -- status / 상태
  channel TEXT NOT NULL, -- channel / 채널
  payment TEXT NOT NULL, -- payment method / 결제 수단, 결제 방법
  shipping_fee INTEGER NOT NULL, -- shipping fee / 배송비
  delivered_on DATE -- delivery date / 배송일
);

CREATE TABLE order_items ( -- order item / 주문 항목
  order_id INTEGER NOT NULL REFERENCES orders (id), -- order id / 주문 번호
  product_id INTEGER NOT NULL REFERENCES products (id), -- product id / 상품 번호
  quantity INTEGER NOT NULL, -- quantity / 수량
  unit_price INTEGER NOT NULL, -- unit price / 단가
  discount INTEGER NOT NULL, -- discount / 할인율
  PRIMARY KEY (order_id, product_id)
) WITHOUT ROWID;

CREATE TABLE reviews ( -- review / 리뷰, 후기
  id INTEGER PRIMARY KEY, -- id / 번호
  product_id INTEGER NOT NULL REFERENCES products (id), -- product id / 상품 번호
  customer_id INTEGER NOT NULL REFERENCES customers (id), -- customer id / 고객 번호
  rating INTEGER NOT NULL, -- rating / 평점, 별점
  comment TEXT, -- comment / 코멘트
  votes INTEGER NOT NULL, -- helpful votes / 추천 수
  written_on DATE NOT NULL -- review date / 작성일
);

CREATE INDEX order_items_product ON order_items (product_id);
CREATE INDEX orders_customer ON orders (customer_id);
CREATE INDEX orders_store ON orders (store_id);
CREATE INDEX orders_employee ON orders (employee_id);
CREATE INDEX products_supplier ON products (supplier_id);
CREATE INDEX products_category ON products (category_id);
CREATE INDEX reviews_product ON reviews (product_id);
CREATE INDEX reviews_customer ON reviews (customer_id);
"""
