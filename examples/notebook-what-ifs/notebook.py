"""A household's year with a solar roof, hour by hour: loaded once, then asked what would be if."""

import numpy as np
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

hours, sun_kw, use_kw = np.loadtxt("/workspace/year.csv", delimiter=",", skiprows=1, unpack=True)
months = np.minimum((hours // 730.5).astype(int), 11)


def year(panels_kw, battery_kwh, price, tariff=lambda hour: 1.0):
    """The energy that is bought and sold, when a battery takes what is left over and gives it back later. Euros a month."""
    charge, bought, sold = 0.0, np.zeros(len(hours)), np.zeros(len(hours))
    for hour, left in enumerate(sun_kw * panels_kw - use_kw):
        if left > 0:
            taken = min(left, battery_kwh - charge)
            charge += taken * 0.95
            sold[hour] = left - taken
        else:
            given = min(-left, charge)
            charge -= given
            bought[hour] = -left - given
    rate = price * np.array([tariff(int(hour) % 24) for hour in hours])
    euros = np.bincount(months, weights=bought * rate - sold * 0.08, minlength=12)
    return bought.sum(), sold.sum(), euros


def draw(title, euros):
    figure, axes = plt.subplots(figsize=(4.5, 3))
    axes.bar(range(1, 13), euros, color=["tab:green" if value < 0 else "tab:orange" for value in euros])
    axes.set(title=title, xlabel="month", ylabel="euros", ylim=(-60, 160))
    figure.tight_layout()
    plt.show()
