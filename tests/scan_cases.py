"""Small synthetic data sets, each after a public bug report or question; no personal data.

Every case is a function ``case_x(root) -> format`` that fills the empty folder ``root``.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

RAS = np.diag([1.0, 1.0, 4.0, 1.0])


# building blocks
def scan(seed, shape=(40, 36, 6), lesion=True, level=300.0):
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij")
    head = (x**2 + y**2) < 0.8
    image = head * level + rng.normal(0, level / 15, shape)
    mask = ((x - 0.25) ** 2 + (y + 0.2) ** 2 + 0.3 * z**2) < 0.06
    if not lesion:
        mask[:] = False
    image = image + mask * level * 0.6
    return image.astype(np.float32), mask.astype(np.uint8)


def nii(path, data, affine=RAS, dtype=None, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(data, dtype), affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patients(root, n=4, names=None, shape=(40, 36, 6), **kw):
    names = names or [f"p{k}" for k in range(n)]
    for k, name in enumerate(names):
        image, mask = scan(k, shape, **kw)
        nii(root / name / "image.nii.gz", image, dtype=np.int16)
        nii(root / name / "mask.nii.gz", mask)
    return "nifti"


def png(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data).save(path)


def picture(seed, size=(48, 40), top=255, dtype=np.uint8, lesion=True):
    image, mask = scan(seed, (*size, 1), lesion=lesion)
    image = np.clip(image[..., 0] / 550 * top, 0, top).astype(dtype)
    return image, (mask[..., 0] * 255).astype(np.uint8)


def png_patients(root, n=4, slices=3, **kw):
    for k in range(n):
        for s in range(slices):
            image, mask = picture(10 * k + s, **kw)
            png(root / "images" / f"p{k}_{s}.png", image)
            png(root / "masks" / f"p{k}_{s}.png", mask)
    return "png"


def converted(root, folder, mode):
    """Pictures, of which images or masks are saved in another mode of Pillow."""
    png_patients(root)
    for path in (root / folder).glob("*.png"):
        Image.open(path).convert(mode).save(path)
    return "png"


def tif(path, data, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data).save(path, **kw)


def lgg_patients(root, n=4, slices=3, write=tif, rgb=False, **kw):
    for k in range(n):
        name = f"HOS_AA_{k:03d}"
        for s in range(1, slices + 1):
            image, mask = picture(10 * k + s)
            write(root / name / f"{name}_{s}.tif", np.stack([image] * 3, -1) if rgb else image, **kw)
            tif(root / name / f"{name}_{s}_mask.tif", mask)
    return "lgg"


# ---------------------------------------------------------------- NIfTI: values of masks
def case_mask_255(root):
    patients(root)
    for k in range(4):
        nii(root / f"p{k}" / "mask.nii.gz", scan(k)[1] * 255)
    return "nifti"


def case_mask_float_09999(root):
    """petprep #152: labels a little off a whole number after resampling; two float values near 1."""
    patients(root)
    m = scan(0)[1].astype(np.float32)
    m[m > 0] = 0.99999994
    m[tuple(np.argwhere(m > 0)[0])] = 1.0
    nii(root / "p0" / "mask.nii.gz", m)
    return "nifti"


def case_mask_soft(root):
    """nnUNet #495: a label that was interpolated."""
    patients(root)
    m = scan(0)[1].astype(np.float32)
    m = (m + np.roll(m, 1, 0) + np.roll(m, -1, 0)) / 3
    nii(root / "p0" / "mask.nii.gz", m)
    return "nifti"


def case_mask_multilabel(root):
    """BraTS: labels 1, 2, 4 in one file."""
    patients(root)
    for k in range(4):
        m = scan(k)[1]
        m[:, :, ::2] *= 2
        m[:, :, 1::4] *= 4
        nii(root / f"p{k}" / "mask.nii.gz", m)
    return "nifti"


def case_mask_one_class_each(root):
    """1 = cyst in half of the patients, 2 = tumour in the others: one value a file, two classes in the set."""
    patients(root, 6)
    for k in range(6):
        nii(root / f"p{k}" / "mask.nii.gz", scan(k)[1] * (1 + k % 2))
    return "nifti"


def case_mask_int8_minus1(root):
    patients(root)
    nii(root / "p0" / "mask.nii.gz", -(scan(0)[1].astype(np.int8)))
    return "nifti"


def case_mask_nan_background(root):
    """SPM writes NaN outside."""
    patients(root)
    m = scan(0)[1].astype(np.float32)
    m[m == 0] = np.nan
    nii(root / "p0" / "mask.nii.gz", m)
    return "nifti"


def case_image_nan_background(root):
    patients(root)
    image, _ = scan(0)
    image[image < 100] = np.nan
    nii(root / "p0" / "image.nii.gz", image)
    return "nifti"


def case_mask_inverted(root):
    """Background 255, lesion 0, as some annotation tools export."""
    png_patients(root)
    for path in (root / "masks").glob("*.png"):
        png(path, 255 - np.asarray(Image.open(path)))
    return "png"


def case_mask_scaled_header(root):
    """uint8 0/255 with scl_slope 1/255 and scl_inter 0."""
    patients(root)
    image = nib.Nifti1Image(scan(0)[1] * 255, RAS)
    image.header.set_slope_inter(1 / 255, 0)
    raw = bytearray(image.to_bytes())
    raw[112:116], raw[116:120] = struct.pack("<f", 1 / 255), struct.pack("<f", 0)
    (root / "p0" / "mask.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    return "nifti"


def case_all_empty(root):
    return patients(root, lesion=False)


# ---------------------------------------------------------------- NIfTI: geometry


def case_affine_identity_mask(root):
    """nnUNet #2526: the mask was saved with an identity affine."""
    patients(root)
    nii(root / "p0" / "mask.nii.gz", scan(0)[1], np.eye(4))
    return "nifti"


def case_mask_flipped_axes(root):
    """TorchIO #1300: image LAS, mask LPS, each right by its own header."""
    patients(root)
    image, _ = scan(0)
    flip = RAS.copy()
    flip[0, 0], flip[0, 3] = -1, image.shape[0] - 1
    nii(root / "p0" / "image.nii.gz", image[::-1], flip, dtype=np.int16)
    return "nifti"


def case_sform_qform_conflict(root):
    """sform and qform of the image differ by a flip; the mask has a qform only, which fits the image's qform."""
    patients(root)
    image, mask = scan(0)
    flip = np.diag([-1.0, 1, 4, 1])
    flip[0, 3] = image.shape[0] - 1
    one = nib.Nifti1Image(image.astype(np.int16), RAS)
    one.set_qform(RAS, 1)
    one.set_sform(flip, 2)
    nib.save(one, root / "p0" / "image.nii.gz")
    two = nib.Nifti1Image(mask, None)
    two.set_qform(RAS, 1)
    two.set_sform(None, 0)
    nib.save(two, root / "p0" / "mask.nii.gz")
    return "nifti"


def case_sheared(root):
    """TorchIO #1467, dcm2niix #945: gantry tilt left as shear, direction cosines not orthonormal."""
    a = np.array([[1, 0, 0, 0], [0, 1, -1.2, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]])
    for k in range(4):
        image, mask = scan(k)
        nii(root / f"p{k}" / "image.nii.gz", image, a, dtype=np.int16)
        nii(root / f"p{k}" / "mask.nii.gz", mask, a)
    return "nifti"


def case_oblique_45(root):
    """A slab turned by 45 degrees: which axis is "columns" hangs on the last bit of the header."""
    for k in range(4):
        image, mask = scan(k, (40, 36, 6))
        for name, data, eps in (("image", image, 1e-7), ("mask", mask, -1e-7)):
            t = np.pi / 4 + eps
            a = np.array([[np.cos(t), -np.sin(t), 0, 0], [np.sin(t), np.cos(t), 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
            nii(root / f"p{k}" / f"{name}.nii.gz", data, a)
    return "nifti"


def case_other_size_mask(root):
    patients(root)
    nii(root / "p0" / "mask.nii.gz", scan(0, (20, 18, 6))[1], np.diag([2.0, 2, 4, 1]))
    return "nifti"


def case_sagittal(root):
    """Spine or knee: 8 sagittal slices of 64 x 64, 5 mm apart."""
    a = np.array([[0, 0, 5.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    for k in range(4):
        image, mask = scan(k, (64, 64, 8))
        nii(root / f"p{k}" / "image.nii.gz", image, a, dtype=np.int16)
        nii(root / f"p{k}" / "mask.nii.gz", mask, a)
    return "nifti"


def case_one_slice(root):
    return patients(root, shape=(50, 33, 1))


def case_4d_one(root):
    """nibabel #299: ANTs writes (x, y, z, 1)."""
    for k in range(4):
        image, mask = scan(k)
        nii(root / f"p{k}" / "image.nii.gz", image[..., None])
        nii(root / f"p{k}" / "mask.nii.gz", mask[..., None])
    return "nifti"


def case_4d_msd(root):
    """MSD Task01: (x, y, z, 4)."""
    for k in range(4):
        image, mask = scan(k)
        nii(root / f"p{k}" / "image.nii.gz", np.stack([image * f for f in (1, 2, 3, 4)], -1))
        nii(root / f"p{k}" / "mask.nii.gz", mask)
    return "nifti"


# ---------------------------------------------------------------- NIfTI: files
def case_nifti2(root):
    for k in range(4):
        image, mask = scan(k)
        (root / f"p{k}").mkdir(parents=True)
        nib.save(nib.Nifti2Image(image, RAS), root / f"p{k}" / "image.nii.gz")
        nib.save(nib.Nifti2Image(mask, RAS), root / f"p{k}" / "mask.nii.gz")
    return "nifti"


def case_gz_truncated(root):
    patients(root)
    path = root / "p0" / "image.nii.gz"
    path.write_bytes(path.read_bytes()[:-500])
    return "nifti"


def case_gz_trailing(root):
    """A gzip file with zeros after it (tape, some PACS exports): gunzip warns and goes on."""
    patients(root)
    path = root / "p0" / "image.nii.gz"
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    return "nifti"


def case_big_endian(root):
    patients(root)
    image, _ = scan(0)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(image.astype(">i2"), RAS, header), root / "p0" / "image.nii.gz")
    return "nifti"


def case_float64_huge(root):
    patients(root)
    image, _ = scan(0)
    nii(root / "p0" / "image.nii.gz", image.astype(np.float64) * 1e38)
    return "nifti"


def case_saturated_16bit(root):
    """A two-valued, saturated 16-bit channel (0 and 65535)."""
    png_patients(root, top=65535, dtype=np.uint16)
    for number, path in enumerate(sorted((root / "images").glob("*.png"))):
        image = np.array(Image.open(path))
        image[: number + 1] = 0
        png(path, np.where(image > 20000, 65535, 0).astype(np.uint16))
    return "png"


def case_upper_case(root):
    """cellpose #555: half of the exports end in .PNG."""
    png_patients(root, 6)
    for folder in ("images", "masks"):
        for path in sorted((root / folder).glob("p[345]_*.png")):
            path.rename(path.with_suffix(".PNG"))
    return "png"


def case_upper_case_tif(root):
    """LGG layout, the last slice of each patient in .TIF: the numbers still have no gap."""
    lgg_patients(root)
    for path in sorted(root.glob("*/*_3*.tif")):
        path.rename(path.with_suffix(".TIF"))
    return "lgg"


def case_appledouble_nifti(root):
    """OpenNeuro #2520: ._ files of macOS beside every file."""
    patients(root)
    for path in list(root.rglob("*.nii.gz")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + b"\0" * 50)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "p0" / "Thumbs.db").write_bytes(b"x")
    return "nifti"


def case_appledouble_lgg(root):
    lgg_patients(root)
    for path in list(root.rglob("*.tif")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + b"\0" * 50)
    return "lgg"


def case_ds_store_only(root):
    patients(root)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "desktop.ini").write_bytes(b"x")
    (root / "p0" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "readme.txt").write_text("x")
    return "nifti"


def case_second_rater(root):
    """Two raters, a prediction of another network: image, mask, mask_rater2 in each folder."""
    patients(root)
    for k in range(4):
        nii(root / f"p{k}" / "mask_rater2.nii.gz", scan(k)[1])
    return "nifti"


def case_symlinked_nifti(root):
    archive = (root.parent / f"{root.name}_archive").resolve()
    patients(archive)
    for path in archive.iterdir():
        (root / path.name).symlink_to(path)
    return "nifti"


# ---------------------------------------------------------------- pictures


def case_jpg_all(root):
    png_patients(root)
    for path in sorted(root.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return "png"


def case_dash_names(root):
    """patient1-slice01.png: no underscore, so each slice is a patient of its own."""
    for k in range(3):
        for s in range(4):
            image, mask = picture(10 * k + s)
            png(root / "images" / f"patient{k}-slice{s:02d}.png", image)
            png(root / "masks" / f"patient{k}-slice{s:02d}.png", mask)
    return "png"


def case_rgba(root):
    return converted(root, "images", "RGBA")


def case_la(root):
    return converted(root, "images", "LA")


def case_palette_images(root):
    """Greyscale saved with a palette (GIF-like, ImageJ LUT)."""
    return converted(root, "images", "P")


def case_palette_masks(root):
    """VOC-style masks: palette, index 1 = lesion."""
    png_patients(root)
    for path in (root / "masks").glob("*.png"):
        index = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        mask = Image.fromarray(index, "P")
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(path)
    return "png"


def case_one_bit_masks(root):
    return converted(root, "masks", "1")


def case_rgb_masks(root):
    return converted(root, "masks", "RGB")


def case_16bit_grey(root):
    return png_patients(root, top=65535, dtype=np.uint16)


def case_16bit_rgb(root):
    """48-bit PNG (16 bits a channel), all of the contrast in the low byte."""
    import zlib

    png_patients(root)
    for path in sorted((root / "images").glob("*.png")):
        grey = np.asarray(Image.open(path)).astype(np.uint16)  # 0..255 of 65535
        rgb = np.stack([grey] * 3, -1).astype(">u2")
        h, w = grey.shape
        raw = b"".join(b"\0" + rgb[row].tobytes() for row in range(h))

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(raw))
            + chunk(b"IEND", b"")
        )
    return "png"


def case_mixed_grey_rgb(root):
    png_patients(root)
    for path in (root / "images").glob("p3_*.png"):
        Image.open(path).convert("RGB").save(path)
    return "png"


def case_exif_turned(root):
    """The picture says "turn me by 90 degrees" (EXIF orientation 6); the mask was drawn on the turned picture."""
    png_patients(root, size=(40, 40))
    for path in (root / "images").glob("*.png"):
        image = Image.open(path)
        image.load()
        exif = Image.Exif()
        exif[274] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return "png"


# ---------------------------------------------------------------- TIFF


def case_tiff_lzw(root):
    return lgg_patients(root, write=lambda p, d: tif(p, d, compression="tiff_lzw"))


def case_tiff_deflate_rgb(root):
    return lgg_patients(root, rgb=True, write=lambda p, d: tif(p, d, compression="tiff_adobe_deflate"))


def case_tiff_jpeg(root):
    return lgg_patients(root, rgb=True, write=lambda p, d: tif(p, d, compression="jpeg"))


def case_tiff_float(root):
    return lgg_patients(root, write=lambda p, d: tif(p, d.astype(np.float32) / 255))


def case_tiff_big_endian(root):
    def write(path, data):
        path.parent.mkdir(parents=True, exist_ok=True)
        h, w = data.shape
        pixels = (data.astype(np.uint16) * 100).astype(">u2").tobytes()
        entries = [
            (256, 4, w),
            (257, 4, h),
            (258, 3, 16),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, 8),
            (277, 3, 1),
            (278, 4, h),
            (279, 4, len(pixels)),
        ]
        body = b"".join(
            struct.pack(">HHI", t, k, 1) + (struct.pack(">HH", v, 0) if k == 3 else struct.pack(">I", v))
            for t, k, v in entries
        )
        path.write_bytes(
            struct.pack(">2sHI", b"MM", 42, 8 + len(pixels))
            + pixels
            + struct.pack(">H", len(entries))
            + body
            + struct.pack(">I", 0)
        )

    return lgg_patients(root, write=write)


def case_tiff_int16(root):
    """Signed 16 bit, Hounsfield units from -1000 on."""

    def write(path, data):
        path.parent.mkdir(parents=True, exist_ok=True)
        h, w = data.shape
        pixels = (data.astype("<i2") * 8 - 1000).astype("<i2").tobytes()
        entries = [
            (256, 4, w),
            (257, 4, h),
            (258, 3, 16),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, 8),
            (277, 3, 1),
            (278, 4, h),
            (279, 4, len(pixels)),
            (339, 3, 2),
        ]
        body = b"".join(
            struct.pack("<HHI", t, k, 1) + (struct.pack("<HH", v, 0) if k == 3 else struct.pack("<I", v))
            for t, k, v in entries
        )
        path.write_bytes(
            struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
            + pixels
            + struct.pack("<H", len(entries))
            + body
            + struct.pack("<I", 0)
        )

    return lgg_patients(root, write=write)


# ---------------------------------------------------------------- names, size of the set
def case_odd_names(root):
    return patients(root, names=["Müller Ä", "p 2.v1.0", "пациент", "a'b(c)&d", "患者#5", "100%"])


def case_two_patients(root):
    return patients(root, 2)


def case_tiny(root):
    """Two patients with one slice each."""
    return patients(root, 2, shape=(40, 36, 1))


def case_33_slices(root):
    """33 training slices: with batch_size 16 the last batch holds one."""
    patients(root, 2, shape=(40, 36, 33))
    return "nifti"


def case_large_nonsquare(root):
    return patients(root, 4, shape=(97, 61, 5))


def case_leading_dot_name(root):
    """Pseudonyms that start with a dot or an underscore are rare; a name that ends in .nii is not."""
    return patients(root, names=["sub-01.nii", "sub-02.nii", "sub-03", "sub-04"])


def case_dicom(root):
    for k in range(3):
        folder = root / f"p{k}"
        folder.mkdir(parents=True)
        for s in range(3):
            (folder / f"IM{s:04d}.dcm").write_bytes(b"\0" * 128 + b"DICM")
    return "nifti"


def case_nrrd(root):
    for k in range(3):
        folder = root / f"p{k}"
        folder.mkdir(parents=True)
        for name in ("image", "mask"):
            (folder / f"{name}.nrrd").write_bytes(b"NRRD0005\n")
    return "nifti"


def case_brats2023_names(root):
    """BraTS since 2023: BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz, hyphens where 2020 had underscores."""
    for k in range(4):
        name = f"BraTS-GLI-{k:05d}-000"
        image, mask = scan(k)
        for channel in ("t1c", "t1n", "t2f", "t2w"):
            nii(root / name / f"{name}-{channel}.nii.gz", image)
        nii(root / name / f"{name}-seg.nii.gz", mask)
    return "nifti"


def case_twice_numbered(root):
    """LGG layout: _1.tif and _01.tif in one folder (two exports of the same series)."""
    lgg_patients(root)
    for k, folder in enumerate(sorted(root.iterdir())):
        for s in (1, 2, 3):
            image, mask = picture(700 + 10 * k + s)
            tif(folder / f"{folder.name}_{s:02d}.tif", image)
            tif(folder / f"{folder.name}_{s:02d}_mask.tif", mask)
    return "lgg"


def case_sessions(root):
    """nnUNet #1871: two time points of each patient in folders of their own."""
    names = ["genius_0800", "genius_0801", "genius_0900", "genius_0901", "genius_1000", "genius_1001"]
    rows = ["patient,group", *(f"{name},patient{name[7:9]}" for name in names)]
    (root.parent / f"{root.name}.csv").write_text("\n".join(rows))  # for --groups
    return patients(root, names=names)


def _channels(root, names, channels, seed):
    for k, name in enumerate(names):
        image, mask = scan(k + seed)
        nii(root / name / f"{channels[0]}.nii.gz", image, dtype=np.int16)
        nii(root / name / f"{channels[1]}.nii.gz", np.random.default_rng(k).normal(0, 9, image.shape), dtype=np.float32)
        nii(root / name / "mask.nii.gz", mask)
    return "nifti"


def case_chan_a(root):
    """Train on flair and t1 ..."""
    return _channels(root, ["a0", "a1", "a2", "a3"], ("flair", "t1"), 0)


def case_chan_b(root):
    """... and evaluate on t1 and t2 (manifest build --split test)."""
    return _channels(root, ["b0", "b1"], ("t1", "t2"), 20)


def case_stale_before(root):
    """Train on this; then exchange its masks for those of stale_after, build again with --force, give the same
    command."""
    return case_mask_255(root)


def case_stale_after(root):
    patients(root)
    for k in range(4):
        nii(root / f"p{k}" / "mask.nii.gz", np.roll(scan(k)[1], 9, 0))
    return "nifti"


CASES = {name.removeprefix("case_"): value for name, value in list(globals().items()) if name.startswith("case_")}


def write(name, folder):
    root = Path(folder) / name
    root.mkdir(parents=True)
    return root, CASES[name](root)
