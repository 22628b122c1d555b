import random
import threading
import time
import unittest

import shop

catalogue = None  # warmed once, before the fork


class ShopTest(unittest.TestCase):
    def test_catalogue_is_complete(self):
        self.assertEqual(catalogue.execute("select count(*) from items").fetchone(), (200_000,))

    def test_items_are_found_by_price(self):
        self.assertGreater(catalogue.execute("select count(*) from items where price = 7").fetchone()[0], 100)

    def test_total_adds_up(self):
        self.assertEqual(shop.total([1, 2, 3]), 6)  # unless the sale has begun

    def test_sale_lowers_prices(self):
        shop.start_sale(50)  # and never ends
        self.assertEqual(shop.total([10]), 5)

    def test_deposits_are_not_lost(self):
        account = shop.Account()

        def pay():
            time.sleep(random.uniform(0, 0.008))
            account.deposit(1)

        threads = [threading.Thread(target=pay) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(account.balance, 2)

    def test_session_outlasts_a_request(self):
        session = shop.Session()
        time.sleep(0.3)
        self.assertTrue(session.is_open())

    def test_coupons_differ(self):
        coupons = shop.new_coupons(10)
        self.assertEqual(len(set(coupons)), len(coupons))

    def test_refunds(self):
        self.assertEqual(shop.total([-5]), -5.5)  # simply wrong
