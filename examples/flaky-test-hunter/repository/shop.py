"""A little shop. Some of its tests fail now and then, each for a reason that is common in real ones."""

import csv
import io
import random
import sqlite3
import time

rates = {"standard": 1.0}


def load_catalogue(path):
    """The slow part of every run: read a file, fill a database, build an index."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("create table items (name text primary key, price integer)")
    with open(path, newline="") as file:
        database.executemany("insert into items values (?, ?)", ((row["name"], int(row["price"])) for row in csv.DictReader(file)))
    database.execute("create index by_price on items (price)")
    return database


def write_catalogue(path, count):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["name", "price"])
    writer.writerows((f"item-{number}", number % 997 + 1) for number in range(count))
    with open(path, "w") as file:
        file.write(out.getvalue())


def total(prices, rate="standard"):
    return sum(prices) * rates[rate]


def start_sale(percent):
    rates["standard"] = 1 - percent / 100


class Account:
    def __init__(self):
        self.balance = 0

    def deposit(self, amount):
        before = self.balance
        time.sleep(random.uniform(0, 0.004))  # a call to somewhere else
        self.balance = before + amount


class Session:
    """Lasts for at least a second, or so its author thought: the clock is read in whole seconds."""

    def __init__(self):
        self.ends = int(time.time()) + 1

    def is_open(self):
        return int(time.time()) < self.ends


def new_coupons(count):
    return [f"{random.randrange(100):02}" for _ in range(count)]
