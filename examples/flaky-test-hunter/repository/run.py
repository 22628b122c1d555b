"""One run of the suite, in an order of its own. Printed as JSON: what failed, and its log."""

import io
import json
import random
import unittest

import tests


def run(order):
    names = unittest.TestLoader().getTestCaseNames(tests.ShopTest)
    random.Random(order).shuffle(names)
    result = unittest.TextTestRunner(stream=io.StringIO()).run(unittest.TestSuite(map(tests.ShopTest, names)))
    failed = {test.id().split(".")[-1]: log for test, log in result.failures + result.errors}
    print(json.dumps({"order": names, "failed": failed}))
