// numpy's archives of arrays (.npz), read with nothing taken on trust.
#pragma once

#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

#include "buffers.hpp"

namespace sana_rt::runtime {

// Not an archive of arrays, or one that is not whole; callers name the file in their own error.
class DamagedArrayError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Arrays = std::map<std::string, HostTensor>;

// One array (.npy) that is in memory.
HostTensor parse_array(std::string_view data);
// The arrays of a file. An Error STORAGE where it cannot be read at all.
Arrays read_arrays(const std::filesystem::path& path);
// The same of a file that is in memory.
Arrays parse_arrays(std::string_view file);

// Writes a file that is there whole or not at all.
void write_arrays(const std::filesystem::path& path, const Arrays& arrays);

}  // namespace sana_rt::runtime
