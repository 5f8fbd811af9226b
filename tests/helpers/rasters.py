"""Rasters that tests write with rasterio."""

import pytest


def write_tif(path, data, *, names=None, colours=None, tags=None, driver="GTiff", **profile):
    """Write `(C, H, W)` as a GeoTIFF with a CRS; `names` describe its bands, `colours` are how they are shown."""
    rasterio = pytest.importorskip("rasterio")
    count, height, width = data.shape
    place = {"crs": "EPSG:32650", "transform": rasterio.transform.from_origin(5e5, 4e6, 10, 10)}
    profile = {**place, "dtype": data.dtype.name, **profile}
    with rasterio.open(path, "w", driver=driver, height=height, width=width, count=count, **profile) as file:
        file.write(data)
        if colours:
            file.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours]
        if names:
            file.descriptions = names
        file.update_tags(**(tags or {}))
    return str(path)
