"""Sokoban, as a program that is in the middle of a game: it yields what can be done now, and is sent what is to be done next.

A running generator cannot be copied, pickled or rewound, and a push cannot be taken back. To try two pushes there have to be two of it.
"""

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def play(level):
    rows = level.strip("\n").split("\n")
    cells = {(y, x): mark for y, row in enumerate(rows) for x, mark in enumerate(row)}
    walls = {at for at, mark in cells.items() if mark == "#"}
    goals = {at for at, mark in cells.items() if mark in ".*+"}
    boxes = {at for at, mark in cells.items() if mark in "$*"}
    (player,) = (at for at, mark in cells.items() if mark in "@+")

    def reachable():
        seen, todo = {player}, [player]
        for y, x in todo:
            for dy, dx in DIRECTIONS.values():
                at = (y + dy, x + dx)
                if at not in seen and at not in walls and at not in boxes:
                    seen.add(at)
                    todo.append(at)
        return seen

    def options():
        free = reachable()
        for y, x in sorted(boxes):
            for name, (dy, dx) in DIRECTIONS.items():
                if (y - dy, x - dx) in free and (y + dy, x + dx) not in walls | boxes:
                    yield (y, x), name

    def distance():
        """How far the boxes are from goals, each by itself: what a player sees at a glance. It knows nothing of dead ends."""
        return sum(min(abs(y - gy) + abs(x - gx) for gy, gx in goals) for y, x in boxes)

    def board():
        def mark(at):
            if at in walls:
                return "#"
            if at in boxes:
                return "*" if at in goals else "$"
            if at == player:
                return "@"
            return "." if at in goals else " "

        return "\n".join("".join(mark((y, x)) for x in range(len(row))) for y, row in enumerate(rows))

    while True:
        moves = list(options())
        choice = yield {
            "options": [f"{y},{x} {name}" for (y, x), name in moves],
            "distance": distance(),
            "solved": boxes == goals,
            "board": board(),
        }
        box, name = moves[choice]
        dy, dx = DIRECTIONS[name]
        boxes.remove(box)
        boxes.add((box[0] + dy, box[1] + dx))
        player = box
