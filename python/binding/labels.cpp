/* SPDX-License-Identifier: Apache-2.0 */
/* Named structures. */
#include "binding/detached.h"

namespace binding
{

using made_labels = made<dm_labels, dm_labels_free>;

/* By id, or in a table that the library reads. */
using id_names = std::map<int32_t, std::string>;
using names_argument = std::optional<std::variant<id_names, path>>;

/* Both forms as C takes them. */
struct names {
    id_names by_id;
    std::optional<std::string> table;

    explicit names(const names_argument &given)
    {
        if (!given)
            return;
        if (std::holds_alternative<path>(*given))
            table = std::get<path>(*given).bytes();
        else
            by_id = std::get<id_names>(*given);
        for (const auto &[id, name] : by_id)
            c_string(name, "the name of a structure");
    }
    const char *table_path() const
    {
        return table ? table->c_str() : nullptr;
    }
};

/* Names of ids that no voxel has say nothing, as in a table that is read. Two steps, because no two
 * structures may have one name on the way either. */
static dm_status rename_all(dm_labels *structures, const id_names &by_id, dm_error *err)
{
    for (bool last : {false, true})
        for (size_t i = 0; i < dm_labels_count(structures); i++) {
            int32_t id = dm_labels_id(structures, i);
            auto found = by_id.find(id);
            if (found == by_id.end())
                continue;
            std::string name = last ? found->second : "dosemap renames " + std::to_string(id);
            dm_status status = dm_labels_rename(structures, id, name.c_str(), err);
            if (status != DM_OK)
                return status;
        }
    return DM_OK;
}

static labels labels_read(const path &name, const names_argument &given)
{
    std::string file = name.bytes();
    names called(given);
    made_labels read;
    run_detached([&](dm_error *err) {
        dm_status status = dm_labels_read(file.c_str(), called.table_path(), read.put(), err);
        return status == DM_OK ? rename_all(read.get(), called.by_id, err) : status;
    });
    return {read.share()};
}

static labels labels_from_ids(const array_3d<int32_t> &ids, const affine &rows,
                              const names_argument &given)
{
    check_aligned(ids.data(), sizeof(int32_t));
    dm_grid grid = grid_of(ids, rows);
    names called(given);
    made_labels structures;
    run_detached([&](dm_error *err) {
        dm_status status =
            dm_labels_create(&grid, ids.data(), called.table_path(), structures.put(), err);
        return status == DM_OK ? rename_all(structures.get(), called.by_id, err) : status;
    });
    return {structures.share()};
}

static std::string shape_text(const array_3d<uint8_t> &array)
{
    return std::to_string(array.shape(0)) + " x " + std::to_string(array.shape(1)) + " x " +
           std::to_string(array.shape(2));
}

static labels labels_from_masks(const std::vector<std::string> &called,
                                const std::vector<array_3d<uint8_t>> &masks, const affine &rows)
{
    if (called.size() != masks.size())
        raise_value(std::to_string(called.size()) + " names were given for " +
                        std::to_string(masks.size()) + " masks",
                    "give each mask one name");
    if (masks.empty())
        raise_value("no mask was given", "give at least one");
    std::vector<const char *> name_pointers;
    std::vector<const uint8_t *> mask_pointers;
    for (size_t i = 0; i < masks.size(); i++) {
        name_pointers.push_back(c_string(called[i], "the name of a structure"));
        mask_pointers.push_back(masks[i].data());
        if (shape_text(masks[i]) != shape_text(masks[0]))
            raise_value("the mask '" + called[i] + "' has " + shape_text(masks[i]) + " voxels, '" +
                            called[0] + "' has " + shape_text(masks[0]),
                        "give masks of one size");
    }
    dm_grid grid = grid_of(masks[0], rows);
    made_labels structures;
    run_detached([&](dm_error *err) {
        return dm_labels_create_masks(&grid, masks.size(), name_pointers.data(),
                                      mask_pointers.data(), structures.put(), err);
    });
    return {structures.share()};
}

static labels labels_resample(const labels &l, const sizes &dim, const affine &rows)
{
    dm_grid grid = grid_of(dim, rows);
    made_labels resampled;
    run_detached(
        [&](dm_error *err) { return dm_labels_resample(l.c.get(), &grid, resampled.put(), err); });
    return {resampled.share()};
}

using structure_entry = std::tuple<int32_t, nb::str, size_t>;

static std::vector<structure_entry> labels_structures(const labels &l)
{
    std::vector<structure_entry> all;
    for (size_t i = 0; i < dm_labels_count(l.c.get()); i++)
        all.emplace_back(dm_labels_id(l.c.get(), i), text(dm_labels_name(l.c.get(), i)),
                         dm_labels_voxels(l.c.get(), i));
    return all;
}

void bind_labels(nb::module_ &m)
{
    if (is_bound<labels>(m, "Labels"))
        return;
    nb::class_<labels>(m, "Labels", "Named structures on a grid, which may overlap.")
        .def_static("read", labels_read, nb::arg("path"), nb::arg("names") = nb::none(),
                    "A label image or a folder of masks; names: by id, or a table's path.")
        .def_static("from_ids", labels_from_ids, nb::arg("ids").noconvert(), nb::arg("affine"),
                    nb::arg("names") = nb::none(), "An id for each voxel (x, y, z), 0 for none.")
        .def_static("from_masks", labels_from_masks, nb::arg("names"), nb::arg("masks").noconvert(),
                    nb::arg("affine"),
                    "A mask (x, y, z) for each structure, inside where it is not 0.")
        .def("resample", labels_resample, nb::arg("dim"), nb::arg("affine"))
        .def_prop_ro("dim",
                     [](const labels &l) { return sizes_of(dm_labels_grid(l.c.get())->dim); })
        .def_prop_ro("affine",
                     [](const labels &l) { return affine_of(*dm_labels_grid(l.c.get())); })
        .def_prop_ro("structures", labels_structures, "Id, name and number of voxels of each.");
}

} // namespace binding
