# Runs in the template's Python kernel before it is saved: every sandbox wakes with these names, and with what the first plot of a process sets up.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

figure = pd.DataFrame({"x": np.arange(2.0)}).plot().figure
figure.canvas.draw()
plt.close(figure)
del figure
