// Files: read with a bound, written whole or not at all.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace sana_rt::runtime {

// The content of a file of at most `limit` bytes, and one more if it has more.
std::string read_file(const std::filesystem::path& path, std::size_t limit);

// Lets `write` make a file under a temporary name, which then takes the name `path`.
void write_file(const std::filesystem::path& path,
                const std::function<void(const std::filesystem::path&)>& write);

// An Error STORAGE or DISK_FULL for a number of errno.
[[noreturn]] void throw_storage_error(const std::filesystem::path& path, int number);

// Hex SHA-256.
std::string sha256(const std::string& data);

}  // namespace sana_rt::runtime
