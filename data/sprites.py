"""Characters of 32 x 32 RGB pixels, drawn from known factors. It needs no file and no network.

It stands in for the sprites of Reed et al. 2015, which are in Mathieu et al.'s Table 1. An identity
is a tuple of seven attributes. A pose is six numbers in [-1, 1], independent of the identity.
"""

import math

import torch

ATTRIBUTES = ("body", "gender", "hair", "armor", "arm", "greaves", "weapon")
ATTRIBUTE_SIZES = (7, 2, 4, 3, 2, 2, 3)  # 2,016 possible identities, of which 672 are used
POSE = ("facing", "left arm", "right arm", "stride", "x", "y")
IDENTITIES = {"train": 500, "validation": 72, "test": 100}  # the split of Reed et al. 2015

SKIN = (
    (0.99, 0.87, 0.77),
    (0.93, 0.73, 0.56),
    (0.71, 0.49, 0.33),
    (0.42, 0.27, 0.19),
    (0.52, 0.73, 0.38),
    (0.55, 0.62, 0.85),
    (0.84, 0.45, 0.42),
)
HAIR = ((0.35, 0.20, 0.10), (0.97, 0.85, 0.30), (0.85, 0.15, 0.15), (0.10, 0.10, 0.12))
ARMOR = ((0.55, 0.36, 0.18), (0.66, 0.69, 0.74), (0.48, 0.20, 0.58))  # leather, steel, robe
GREAVES = ((0.30, 0.25, 0.22), (0.25, 0.45, 0.75))
BACKGROUND = (0.93, 0.94, 0.92)
STEEL_SEAM = (0.35, 0.38, 0.45)
ROBE_TRIM = (0.95, 0.85, 0.45)
GAUNTLET = (0.90, 0.70, 0.15)
SWORD = (0.45, 0.50, 0.60)
AXE_HANDLE, AXE_HEAD = (0.40, 0.25, 0.10), (0.75, 0.20, 0.20)
STAFF, STAFF_GEM = (0.20, 0.45, 0.20), (0.20, 0.85, 0.75)
EYE = (0.05, 0.05, 0.10)


def sprites(part, images_per_identity=40, seed=0):
    """A part of the data set, a pure function of the arguments: (x, y, attributes, pose).

    part: "train", "validation" or "test", whose identities are disjoint.
    Returns images uint8 [N, 3, 32, 32], the number of each one's identity within the part
    int64 [N], its attributes int64 [N, 7] and its pose float [N, 6], uniform in [-1, 1].
    """
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(math.prod(ATTRIBUTE_SIZES), generator=rng)
    start = {"train": 0, "validation": 500, "test": 572}[part]
    numbers = chosen[start : start + IDENTITIES[part]]
    identities = torch.stack(torch.unravel_index(numbers, ATTRIBUTE_SIZES), 1)
    y = torch.arange(IDENTITIES[part]).repeat_interleave(images_per_identity)
    attributes = identities[y]
    rng.manual_seed(1_000_003 * (seed + 1) + start)
    pose = torch.rand(len(y), len(POSE), generator=rng) * 2 - 1
    return draw_sprites(attributes, pose), y, attributes, pose


def draw_sprites(attributes, pose):
    """Images uint8 [N, 3, 32, 32] of characters: attributes int64 [N, 7], pose float [N, 6]."""
    blocks = zip(attributes.split(100), pose.split(100))  # so many stay in a processor's cache
    return torch.cat([_draw_block(*block) for block in blocks])


def _draw_block(attributes, pose):
    """As draw_sprites. Each part of a character is painted over those before it."""
    body, gender, hair, armor, arm, greaves, weapon = attributes[:, :, None, None].unbind(1)
    facing, left, right, stride, dx, dy = pose[:, :, None, None].unbind(1)
    canvas = Canvas(len(pose), 16 + 2.5 * dx, 16 + 1.5 * dy)
    skin, hair_colour = pick(SKIN, body), pick(HAIR, hair)
    female = gender == 1
    shoulder = torch.where(female, 3.3, 4.6)  # half the width of the trunk
    draw_legs(canvas, stride, skin, pick(GREAVES, greaves))
    long_hair = canvas.limb(0.0, -11.0, 0.0, -2.5, 4.6)
    canvas.paint(long_hair, hair_colour, hair == 1)  # falls behind the body
    draw_trunk(canvas, shoulder, female, armor)
    draw_arm(canvas, -1, left, shoulder, skin, arm)
    hand = draw_arm(canvas, 1, right, shoulder, skin, arm)
    draw_weapon(canvas, *hand, weapon)
    draw_head(canvas, facing, skin, hair_colour, hair)
    return (canvas.image.clamp(0, 1) * 255).round().to(torch.uint8)


class Canvas:
    """N pictures float [N, 3, 32, 32], and the shapes that are painted on them.

    Coordinates are pixels right of and below the character's centre. A shape is its signed distance
    from every pixel, [N, 32, 32], negative inside. Numbers that differ between pictures are
    [N, 1, 1], colours [N, 3, 1, 1]; where all pictures agree, a plain number or three do.
    """

    def __init__(self, count, centre_x, centre_y):
        pixel = torch.arange(32.0) + 0.5
        y, x = torch.meshgrid(pixel, pixel, indexing="ij")
        self.x, self.y = x - centre_x, y - centre_y
        self.image = torch.tensor(BACKGROUND)[:, None, None].expand(count, 3, 32, 32).clone()

    def paint(self, distance, colour, where=True):
        """Paint a shape, with an edge one pixel wide, in the pictures `where` says."""
        alpha = (0.5 - distance).clamp(0, 1) * where
        if not torch.is_tensor(colour):
            colour = torch.tensor(colour)[:, None, None]
        self.image.add_(alpha[:, None] * (colour - self.image))

    def circle(self, x, y, radius):
        return ((self.x - x) ** 2 + (self.y - y) ** 2).sqrt() - radius

    def box(self, x, y, half_width, half_height):
        return torch.maximum((self.x - x).abs() - half_width, (self.y - y).abs() - half_height)

    def limb(self, ax, ay, bx, by, half_width):
        """A thick line from a to b with round ends."""
        ex, ey = bx - ax, by - ay
        along = ((self.x - ax) * ex + (self.y - ay) * ey) / (ex * ex + ey * ey)
        t = along.clamp(0, 1)  # the nearest point of the line, from 0 at a to 1 at b
        return ((self.x - ax - t * ex) ** 2 + (self.y - ay - t * ey) ** 2).sqrt() - half_width


def pick(colours, index):
    """The colour [N, 3, 1, 1] of each picture: row index [N, 1, 1] of a table of colours."""
    return torch.tensor(colours)[index[:, 0, 0]][:, :, None, None]


def draw_legs(canvas, stride, skin, greaves):
    for side in (-1, 1):  # they swing against each other
        foot = 2 * side + 3.0 * stride * side
        knee = 2 * side + 0.4 * (foot - 2 * side)
        canvas.paint(canvas.limb(2.0 * side, 4.0, foot, 12.5, 1.5), skin)
        canvas.paint(canvas.limb(knee, 7.5, foot, 12.5, 1.7), greaves)


def draw_trunk(canvas, shoulder, female, armor):
    cloth = pick(ARMOR, armor)
    canvas.paint(canvas.box(0.0, 0.5, shoulder, 5.0), cloth)
    canvas.paint(canvas.box(0.0, -1.0, shoulder, 0.8), STEEL_SEAM, armor == 1)
    canvas.paint(canvas.box(0.0, 0.5, 0.8, 5.0), ROBE_TRIM, armor == 2)
    sides = (canvas.x.abs() - 0.55 * (canvas.y - 1)).clamp(min=-9) - 2.2
    skirt = torch.maximum(sides, (canvas.y - 5.5).abs() - 2.6)
    canvas.paint(skirt, cloth * 0.8, female)


def draw_arm(canvas, side, angle, shoulder, skin, arm):
    """Returns the hand's position x, y and the arm's direction there, sine and cosine."""
    turn = 0.2 + 1.3 * (angle + 1) / 2 * 1.4  # radians, from hanging down to above the shoulder
    start_x, start_y = side * (shoulder + 0.4), -3
    hand_x, hand_y = side * (shoulder + 0.4 + 6 * turn.sin()), start_y + 6 * turn.cos()
    elbow_x, elbow_y = start_x + 0.45 * (hand_x - start_x), start_y + 0.45 * (hand_y - start_y)
    canvas.paint(canvas.limb(start_x, start_y, hand_x, hand_y, 1.3), skin)
    canvas.paint(canvas.limb(elbow_x, elbow_y, hand_x, hand_y, 1.6), GAUNTLET, arm == 1)
    return hand_x, hand_y, side * turn.sin(), turn.cos()


def draw_weapon(canvas, hand_x, hand_y, sine, cosine, weapon):
    """Weapons stand across the arm that holds them."""

    def at(distance):
        """The point of the weapon that is so far from the hand, in pixels."""
        return hand_x + distance * cosine, hand_y - distance * sine

    canvas.paint(canvas.limb(*at(-1), *at(7), 0.8), SWORD, weapon == 0)
    canvas.paint(canvas.limb(*at(-2), *at(4), 0.6), AXE_HANDLE, weapon == 1)
    canvas.paint(canvas.circle(*at(4), 2.1), AXE_HEAD, weapon == 1)
    canvas.paint(canvas.limb(*at(-6), *at(5), 0.6), STAFF, weapon == 2)
    canvas.paint(canvas.circle(*at(5), 1.5), STAFF_GEM, weapon == 2)


def draw_head(canvas, facing, skin, hair_colour, hair):
    canvas.paint(canvas.circle(0.0, -8.5, 4.3), skin)
    cap = torch.maximum(canvas.circle(0.0, -8.8, 4.7), canvas.y + 9.5)
    canvas.paint(cap, hair_colour, hair != 2)
    canvas.paint(canvas.box(0.0, -11.8, 0.9, 2.6), hair_colour, hair == 2)  # a mohawk
    canvas.paint(canvas.circle(-3.6 * facing, -13.2, 1.9), hair_colour, hair == 3)  # a bun
    for side in (-1.5, 1.5):
        canvas.paint(canvas.circle(side + 2.2 * facing, -8.0, 0.7), EYE)
