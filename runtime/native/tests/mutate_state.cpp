// Changes one member of an archive and packs all of them anew, so that checksums fit: with the bytes
// of the archive alone, a fuzzer hardly gets past them.
#include <zip.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using Members = std::vector<std::pair<std::string, std::string>>;

constexpr std::size_t kMost = 1 << 16;

Members unpacked(const std::uint8_t* data, std::size_t size) {
  Members members;
  zip_source_t* source = zip_source_buffer_create(data, size, 0, nullptr);
  zip_t* archive = zip_open_from_source(source, ZIP_RDONLY, nullptr);
  if (archive == nullptr) {
    zip_source_free(source);
    return members;
  }
  for (zip_int64_t index = 0; index < std::min<zip_int64_t>(zip_get_num_entries(archive, 0), 64);
       ++index) {
    const auto at = static_cast<zip_uint64_t>(index);
    const char* name = zip_get_name(archive, at, ZIP_FL_ENC_RAW);
    zip_file_t* file = zip_fopen_index(archive, at, 0);
    if (name == nullptr || file == nullptr) continue;
    std::string content(kMost, '\0');
    const auto count = zip_fread(file, content.data(), content.size());
    content.resize(static_cast<std::size_t>(std::max<zip_int64_t>(count, 0)));
    members.emplace_back(name, std::move(content));
    zip_fclose(file);
  }
  zip_discard(archive);
  return members;
}

std::string packed(const Members& members) {
  zip_source_t* source = zip_source_buffer_create(nullptr, 0, 0, nullptr);
  zip_source_keep(source);
  zip_t* archive = zip_open_from_source(source, ZIP_TRUNCATE, nullptr);
  for (const auto& [name, content] : members) {
    zip_source_t* member = zip_source_buffer(archive, content.data(), content.size(), 0);
    const auto index = zip_file_add(archive, name.c_str(), member, ZIP_FL_OVERWRITE);
    if (index < 0) {
      zip_source_free(member);
      continue;
    }
    zip_set_file_compression(archive, static_cast<zip_uint64_t>(index), ZIP_CM_STORE, 0);
    zip_file_set_mtime(archive, static_cast<zip_uint64_t>(index), 0, 0);
  }
  std::string file;
  if (zip_close(archive) != 0) {
    zip_discard(archive);
  } else if (zip_source_open(source) == 0) {
    file.resize(kMost * 4);
    const auto count = zip_source_read(source, file.data(), file.size());
    file.resize(static_cast<std::size_t>(std::max<zip_int64_t>(count, 0)));
    zip_source_close(source);
  }
  zip_source_free(source);
  return file;
}

void mutate(std::string& content, std::size_t most) {
  const auto size = content.size();
  content.resize(std::max(size, most));
  content.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(content.data()), size,
                                  content.size()));
}

// Changes the JSON in an array of bytes, whose header then has its new size.
void mutate_header(std::string& array) {
  const auto begin = array.find('\n');
  std::string json = begin == std::string::npos ? std::string() : array.substr(begin + 1);
  mutate(json, json.size() + 64);
  std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': (" +
                       std::to_string(json.size()) + ",), }";
  header.append(117 - header.size(), ' ');
  array = std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + "\n" + json;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::minstd_rand random(seed);
  auto members = random() % 8 == 0 ? Members{} : unpacked(data, size);
  if (members.empty()) return LLVMFuzzerMutate(data, size, most);
  auto& [name, content] = members[random() % members.size()];
  switch (random() % 8) {
    case 0: mutate(name, 32); break;
    case 1: mutate(content, content.size() + 16); break;
    case 2: members.erase(members.begin() + static_cast<std::ptrdiff_t>(random() % members.size())); break;
    default:
      for (auto& [each, array] : members) {
        if (each == "header.npy") mutate_header(array);
      }
  }
  const auto file = packed(members);
  if (file.empty() || file.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
