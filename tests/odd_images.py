"""Image files that Pillow cannot write, or writes in one way only, and what their pixels are by formulas of our own (no conversion by
Pillow)."""
import io
import struct
import zlib

import numpy as np
from PIL import Image

N = 16  # values of a ramp, shown as 4 × 4 pixels
RAMP = np.arange(N).reshape(4, 4)


def encoded(image, format, **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return buffer.getvalue()


def packed(values, bits):
    "(H, W) integers as bytes: each row begins a new byte, the highest bit first."
    if bits > 8: return [row.astype(">u2").tobytes() for row in values]
    rows = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits:].reshape(len(values), -1)
    return [np.packbits(row).tobytes() for row in rows]


def png(values, bits, colour, **chunks):
    "A PNG of (H, W) or (H, W, C) integers: colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."
    def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    h, w = values.shape[:2]
    rows = b"".join(b"\0" + row for row in packed(values.reshape(h, -1), bits))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunk(k.encode(), v) for k, v in chunks.items())
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(data, bits, photometric, order="<", size=(4, 4), **more):
    "An uncompressed TIFF of one strip. `more` are tags by number: t338=(2,) for ExtraSamples, t339 for SampleFormat, t320 for ColorMap."
    h, w = size
    tags = {256: [w], 257: [h], 258: list(bits), 259: [1], 262: [photometric], 273: [8], 277: [len(bits)], 278: [h], 279: [len(data)]}
    tags |= {int(k[1:]): list(v) for k, v in more.items()}
    data += b"\0" * (len(data) % 2)
    entries, extra, after = [], b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}H", *values)
        if len(body) > 4: body, extra = struct.pack(order + "I", after + len(extra)), extra + body
        entries.append(struct.pack(order + "HHI", tag, 3, len(values)) + body.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", 0) + extra


def grey(v): return np.repeat(np.asarray(v, float)[..., None], 3, -1)


def on_white(rgb, alpha): return rgb * (alpha[..., None] / 255) + 255 - alpha[..., None]


def from_cmyk(v): return (255 - v[..., :3]) * (255 - v[..., 3:]) / 255


def from_ycc(v):
    y, cb, cr = (v[..., i].astype(float) for i in range(3))
    return np.clip(
        np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1), 0, 255
    )


def from_lab(v):
    "CIE L*a*b* of 8 bits (a and b signed) under D50 to sRGB, with Lindbloom's matrix (Bradford adaptation)."
    fy = (v[..., 0] * (100 / 255) + 16) / 116
    f = np.stack([fy + v[..., 1].astype(np.int8) / 500, fy, fy - v[..., 2].astype(np.int8) / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29)**2 * (f - 4 / 29)) * [0.96422, 1, 0.82521]
    linear = xyz @ np.array([[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]).T
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0)**(1 / 2.4) - 0.055).clip(0, 1)


def from_hsv(v):
    h, s, top = (v[..., i] / 255 for i in range(3))
    k = (np.array([5, 3, 1]) + 6 * h[..., None]) % 6
    return 255 * (top[..., None] - (top * s)[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))


V8 = RAMP * 17  # 0 to 255
ALPHA = V8[::-1, ::-1]
COLOUR = np.stack([V8, 255 - V8, np.roll(V8, 1)], -1)
PALETTE = np.stack([np.arange(N) * 16, 255 - np.arange(N) * 16, np.full(N, 77)], -1)
MAP = [int(v) * 257 for v in PALETTE.T.ravel()]  # TIFF's ColorMap of 4 bits
MAP8 = [int(v) * 257 for v in np.vstack([PALETTE, np.zeros((240, 3), int)]).T.ravel()]
LAB = np.stack([60 + RAMP * 9, (RAMP * 3 - 20) & 255, (25 - RAMP * 3) & 255], -1).astype(np.uint8)
FLOATS, SIGNED, WIDE, UNKNOWN = "floats", "signed", "wide integers", "a kind of TIFF"


def png_cells():
    for bits in (1, 2, 4, 8, 16):
        top = 2**bits - 1
        v = RAMP % 2 if bits == 1 else RAMP % 4 if bits == 2 else RAMP if bits == 4 else V8 if bits == 8 else RAMP * 4321
        yield f"PNG grey {bits}", png(v, bits, 0), grey(v * 255 / top)
        clear = int(v[0, 1])
        yield (
            f"PNG grey {bits} with a transparent value",
            png(v, bits, 0, tRNS=struct.pack(">H", clear)),
            grey(np.where(v == clear, 255, v * 255 / top)),
        )
    for bits in (1, 2, 4, 8):
        v, colours = RAMP % min(2**bits, N), PALETTE[:2**bits].astype(np.uint8)
        yield f"PNG palette {bits}", png(v, bits, 3, PLTE=colours.tobytes()), colours[v]
        for alphas in ([255, 0], [10, 128]):
            a = np.full(N, 255); a[:2] = alphas
            yield (
                f"PNG palette {bits}, alpha {alphas}",
                png(v, bits, 3, PLTE=colours.tobytes(), tRNS=bytes(alphas)),
                on_white(colours[v], a[v]),
            )
    for bits in (8, 16):
        scale, eight = (1, lambda v: v) if bits == 8 else (251, lambda v: v >> 8)  # the high byte of 16 bits
        c, a, g = COLOUR * scale, ALPHA * scale, V8 * scale
        yield f"PNG grey and alpha {bits}", png(np.dstack([g, a]), bits, 4), on_white(grey(eight(g)), eight(a))
        yield f"PNG RGB {bits}", png(c, bits, 2), eight(c)
        yield f"PNG RGBA {bits}", png(np.dstack([c, a]), bits, 6), on_white(eight(c), eight(a))
        clear = c[0, 1]
        seen = np.where((c == clear).all(-1, keepdims=True), 255, c)
        yield (
            f"PNG RGB {bits} with a transparent colour",
            png(c, bits, 2, tRNS=struct.pack(">3H", *clear)),
            seen if bits == 8 else "transparent colour",
        )


def tiff_cells():
    for order, name in (("<", "II"), (">", "MM")):
        two = lambda v: v.astype(order + "u2").tobytes()
        one = lambda v: v.astype(np.uint8).tobytes()
        for photometric in (0, 1):
            seen = lambda v, photometric=photometric: grey(255 - v if photometric == 0 else v)
            for bits in (1, 2, 4):
                v = RAMP % 2**bits
                yield (
                    f"TIFF {name} grey {bits}, photometric {photometric}",
                    tiff(b"".join(packed(v, bits)), [bits], photometric, order),
                    seen(v * 255 / (2**bits - 1)),
                )
            yield f"TIFF {name} grey 8, photometric {photometric}", tiff(one(V8), [8], photometric, order), seen(V8)
            known = order == "<" or photometric == 1  # Pillow has no entry for the fourth kind
            wide = tiff(two(RAMP * 4321), [16], photometric, order)
            yield f"TIFF {name} grey 16, photometric {photometric}", wide, seen(RAMP * 4321 / 257) if known else UNKNOWN
        v12 = RAMP * 273
        twelve = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in v12.reshape(-1, 2).tolist())
        yield f"TIFF {name} grey 12", tiff(twelve, [12], 1, order), grey(v12 / 4095 * 255) if order == "<" else UNKNOWN
        for bits, format, reason in (
            (8, 2, SIGNED),
            (16, 2, SIGNED),
            (32, 2, SIGNED),
            (32, 1, WIDE if order == "<" else UNKNOWN),
            (16, 3, UNKNOWN),
            (32, 3, FLOATS),
            (64, 3, UNKNOWN),
        ):
            kind = f"{order}{'?uif'[format]}{bits // 8}"
            yield f"TIFF {name} {kind[1:]}", tiff(RAMP.astype(kind).tobytes(), [bits], 1, order, t339=(format,)), reason
        alpha = {0: lambda c, a: c, 1: lambda c, a: c + 255 - a[..., None], 2: on_white}  # unspecified, premultiplied, straight
        for extra, seen in alpha.items():
            low = V8 * ALPHA // 255 if extra == 1 else V8
            colours = COLOUR * ALPHA[..., None] // 255 if extra == 1 else COLOUR
            yield (
                f"TIFF {name} grey and alpha, extra {extra}",
                tiff(one(np.dstack([low, ALPHA])), [8, 8], 1, order, t338=(extra,)),
                seen(grey(low), ALPHA),
            )
            yield (
                f"TIFF {name} RGBA 8, extra {extra}",
                tiff(one(np.dstack([colours, ALPHA])), [8] * 4, 2, order, t338=(extra,)),
                seen(colours, ALPHA),
            )
            yield (
                f"TIFF {name} RGBA 16, extra {extra}",
                tiff(two(np.dstack([colours, ALPHA]) * 257), [16] * 4, 2, order, t338=(extra,)),
                seen(colours, ALPHA),
            )
        yield f"TIFF {name} grey and alpha 16", tiff(two(np.dstack([V8, ALPHA]) * 257), [16] * 2, 1, order, t338=(2,)), UNKNOWN
        yield f"TIFF {name} RGB 8", tiff(one(COLOUR), [8] * 3, 2, order), COLOUR
        yield f"TIFF {name} RGB 16", tiff(two(COLOUR * 251), [16] * 3, 2, order), COLOUR * 251 >> 8
        yield f"TIFF {name} palette 4", tiff(b"".join(packed(RAMP, 4)), [4], 3, order, t320=MAP), PALETTE[RAMP]
        yield f"TIFF {name} palette 8", tiff(one(RAMP), [8], 3, order, t320=MAP8), PALETTE[RAMP]
        yield (
            f"TIFF {name} palette and alpha",
            tiff(one(np.dstack([RAMP, ALPHA])), [8, 8], 3, order, t338=(2,), t320=MAP8),
            on_white(PALETTE[RAMP], ALPHA),
        )
        four = np.dstack([COLOUR, ALPHA])
        yield f"TIFF {name} CMYK 8", tiff(one(four), [8] * 4, 5, order), from_cmyk(four)
        yield f"TIFF {name} CMYK 16", tiff(two(four * 257), [16] * 4, 5, order), from_cmyk(four)
        yield f"TIFF {name} YCbCr", tiff(one(COLOUR), [8] * 3, 6, order), from_ycc(COLOUR)
        yield f"TIFF {name} CIELab", tiff(one(LAB), [8] * 3, 8, order), from_lab(LAB)
        yield f"TIFF {name} ICCLab", tiff(one(LAB), [8] * 3, 9, order), UNKNOWN


def pnm_cells():
    bit = RAMP % 2
    yield "PBM plain", b"P1 4 4\n" + " ".join(map(str, bit.ravel())).encode(), grey(255 - 255 * bit)
    yield "PBM raw", b"P4 4 4\n" + b"".join(packed(bit, 1)), grey(255 - 255 * bit)
    for top in (1, 15, 100, 255, 256, 1023, 65535):
        v = np.rint(RAMP * top / 15).astype(int)
        kind, text = np.uint8 if top < 256 else ">u2", " ".join(map(str, v.ravel())).encode()
        yield f"PGM raw to {top}", b"P5 4 4 %d\n" % top + v.astype(kind).tobytes(), grey(v * 255 / top)
        yield f"PGM plain to {top}", b"P2 4 4 %d\n" % top + text, grey(v * 255 / top)
        yield f"PPM raw to {top}", b"P6 4 4 %d\n" % top + np.repeat(v, 3).astype(kind).tobytes(), grey(v * 255 / top)
    yield "PFM", b"Pf\n4 4\n-1.0\n" + (V8 / 255).astype("<f4").tobytes(), FLOATS


def written_cells():
    "Every mode of Pillow in every container that it can be written to: name, bytes, pixels or a reason, tolerance."
    pillow = lambda v, mode: Image.frombytes(mode, (4, 4), v.tobytes())
    b = lambda *parts: np.dstack(parts).astype(np.uint8)
    floats, wide = (V8 / 255).astype("<f4"), (RAMP * 4321).astype("<u2")
    palette = pillow(RAMP.astype(np.uint8), "P"); palette.putpalette(PALETTE.astype(np.uint8).tobytes())
    premultiplied = b(COLOUR * ALPHA[..., None] // 255, ALPHA)
    modes = {  # mode -> image, its pixels
        "1": (Image.fromarray(RAMP % 2 == 1), grey(RAMP % 2 * 255)),
        "L": (pillow(V8.astype(np.uint8), "L"), grey(V8)),
        "P": (palette, PALETTE[RAMP]),
        "LA": (pillow(b(V8, ALPHA), "LA"), on_white(grey(V8), ALPHA)),
        "RGB": (pillow(b(COLOUR), "RGB"), COLOUR),
        "RGBA": (pillow(b(COLOUR, ALPHA), "RGBA"), on_white(COLOUR, ALPHA)),
        "RGBX": (pillow(b(COLOUR, ALPHA), "RGBX"), COLOUR),
        "RGBa": (pillow(premultiplied, "RGBa"), premultiplied[..., :3] + 255.0 - ALPHA[..., None]),
        "La": (pillow(b(V8 * ALPHA // 255, ALPHA), "La"), None),
        "CMYK": (pillow(b(COLOUR, ALPHA), "CMYK"), from_cmyk(np.dstack([COLOUR, ALPHA]))),
        "YCbCr": (pillow(b(COLOUR), "YCbCr"), from_ycc(COLOUR)),
        "LAB": (pillow(LAB, "LAB"), from_lab(LAB)),
        "HSV": (pillow(b(COLOUR), "HSV"), from_hsv(COLOUR)),
        "I": (pillow((RAMP * 4321).astype("<i4"), "I"), None),
        "F": (pillow(floats, "F"), None),
        "I;16": (pillow(wide, "I;16"), grey(wide / 257)),
        "I;16B": (pillow(wide.astype(">u2"), "I;16B"), grey(wide / 257)),
        "I;16L": (pillow(wide, "I;16L"), grey(wide / 257)),
        "I;16N": (pillow(wide, "I;16N"), grey(wide / 257)),
        "PA": (pillow(b(RAMP, ALPHA), "PA"), on_white(PALETTE[RAMP], ALPHA)),
    }
    modes["PA"][0].putpalette(PALETTE.astype(np.uint8).tobytes())
    assert set(modes) == set(Image.MODES)
    lossless = dict(PNG={}, TIFF={}, WEBP=dict(lossless=True, exact=True), PPM={}, GIF={})
    lossy = dict(AVIF=dict(quality=100, subsampling="4:4:4"), JPEG=dict(quality=100, subsampling=0))
    for mode, (image, seen) in modes.items():
        for container, options in (lossless | lossy).items():
            try: data = encoded(image, container, **options)
            except (OSError, ValueError): continue
            wanted, tolerance = seen, 1 if container in lossless else 5
            if mode == "I": wanted = SIGNED if container == "TIFF" else grey(wide / 257)
            if mode == "F": wanted = FLOATS
            if mode[0] in "IF" and container in ("WEBP", "AVIF", "GIF"):  # Pillow clips while it writes
                wanted = grey(np.clip(floats if mode == "F" else wide, 0, 255))
            if mode in ("HSV", "LAB", "YCbCr"): tolerance += 3
            # Pillow drops or thresholds alpha while it writes
            if (mode, container) in (("LA", "GIF"), ("RGBA", "GIF"), ("RGBA", "PPM"), ("PA", "WEBP"), ("PA", "AVIF")): continue
            yield f"{container} from mode {mode}", data, wanted, tolerance


def cells():
    "All of them: (name, bytes, (4, 4, 3) pixels or a part of the reason, tolerance)."
    for make in (png_cells, tiff_cells, pnm_cells):
        for name, data, seen in make(): yield name, data, seen, 3 if "CIELab" in name else 1
    yield from written_cells()
