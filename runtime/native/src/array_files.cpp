#include "array_files.hpp"

#include <zip.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <memory>
#include <vector>

#include "error.hpp"
#include "files.hpp"

namespace sana_rt::runtime {
namespace {

constexpr zip_int64_t kMaxMembers = 65'536;
constexpr std::size_t kMaxHeader = 4096;
constexpr std::uint64_t kMaxRatio = 1040;  // deflate makes at most 1,032 bytes of one
constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::string_view kSuffix = ".npy";

struct Descr {
  std::string_view name;
  DType dtype;
};

constexpr std::array<Descr, 6> kDescrs{{{"<f4", DType::kFloat32},
                                        {"<f2", DType::kFloat16},
                                        {"<i8", DType::kInt64},
                                        {"<i4", DType::kInt32},
                                        {"|u1", DType::kUInt8},
                                        {"|b1", DType::kBool}}};

struct Discard {
  void operator()(zip_t* archive) const { zip_discard(archive); }
};
using Archive = std::unique_ptr<zip_t, Discard>;

struct CloseFile {
  void operator()(zip_file_t* file) const { zip_fclose(file); }
};

[[noreturn]] void damaged(const std::string& reason) { throw DamagedArrayError(reason); }

// Takes expected parts off the front of a text.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : left_(text) {}

  bool skip(std::string_view expected) {
    if (!left_.starts_with(expected)) return false;
    left_.remove_prefix(expected.size());
    return true;
  }

  std::string_view take(std::size_t size) {
    const auto taken = left_.substr(0, size);
    left_.remove_prefix(taken.size());
    return taken;
  }

  bool number(std::int64_t& value) {
    const auto [end, error] = std::from_chars(left_.data(), left_.data() + left_.size(), value);
    if (error != std::errc{} || value < 0) return false;
    left_.remove_prefix(static_cast<std::size_t>(end - left_.data()));
    return true;
  }

  std::string_view left() const { return left_; }

 private:
  std::string_view left_;
};

bool scan_shape(Scanner& scanner, Shape& shape) {
  if (!scanner.skip("(")) return false;
  while (!scanner.skip(")")) {
    std::int64_t dim = 0;
    if (shape.size() == kMaxRank || !scanner.number(dim)) return false;
    shape.push_back(dim);
    if (!scanner.skip(", ") && !scanner.skip(",") && !scanner.left().starts_with(")")) return false;
  }
  return true;
}

// The header of an array, of the one form that numpy writes for numbers in C order.
HostTensor parse_header(std::string_view header) {
  Scanner scanner(header);
  HostTensor tensor;
  if (!scanner.skip("{'descr': '")) damaged("its header is not numpy's");
  const auto name = scanner.take(3);
  const auto descr = std::find_if(kDescrs.begin(), kDescrs.end(),
                                  [&](const Descr& each) { return each.name == name; });
  if (descr == kDescrs.end()) damaged("its elements are " + in_quotes(name));
  tensor.dtype = descr->dtype;
  if (!scanner.skip("', 'fortran_order': False, 'shape': ") || !scan_shape(scanner, tensor.shape) ||
      !scanner.skip(", }")) {
    damaged("its header is not that of numbers in C order");
  }
  const auto padding = scanner.left();
  if (padding.empty() || padding.back() != '\n' ||
      padding.find_first_not_of(' ') != padding.size() - 1) {
    damaged("its header does not end like numpy's");
  }
  return tensor;
}

std::string read_member(zip_t* archive, zip_uint64_t index, std::size_t size) {
  const std::unique_ptr<zip_file_t, CloseFile> file(zip_fopen_index(archive, index, 0));
  if (file == nullptr) damaged("a member cannot be opened");
  std::string data;
  std::array<char, 1 << 16> block{};
  while (true) {  // to the end, where checksums are compared
    const auto count = zip_fread(file.get(), block.data(), block.size());
    if (count < 0) damaged("a member is damaged");
    if (count == 0) break;
    data.append(block.data(), static_cast<std::size_t>(count));
    if (data.size() > size) damaged("a member is longer than the archive says");
  }
  if (data.size() != size) damaged("a member is not whole");
  return data;
}

Arrays read_members(zip_t* archive, std::uint64_t file_size) {
  const auto count = zip_get_num_entries(archive, 0);
  if (count > kMaxMembers) damaged("it has too many members");
  Arrays arrays;
  for (zip_uint64_t index = 0; index < static_cast<zip_uint64_t>(count); ++index) {
    zip_stat_t stat;
    constexpr zip_uint64_t kNeeded = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE |
                                     ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    if (zip_stat_index(archive, index, ZIP_FL_ENC_RAW, &stat) != 0 ||
        (stat.valid & kNeeded) != kNeeded) {
      damaged("a member cannot be looked at");
    }
    const std::string_view name = stat.name;
    if (stat.encryption_method != ZIP_EM_NONE ||
        (stat.comp_method != ZIP_CM_STORE && stat.comp_method != ZIP_CM_DEFLATE)) {
      damaged(in_quotes(name) + " is encrypted, or compressed in an unknown way");
    }
    if (!name.ends_with(kSuffix)) damaged(in_quotes(name) + " is not an array");
    if (stat.comp_size > file_size ||
        stat.size > kMaxRatio * std::max<std::uint64_t>(stat.comp_size, 1)) {
      damaged(concat(in_quotes(name), " cannot have ", stat.size, " bytes"));
    }
    const std::string key(name.substr(0, name.size() - kSuffix.size()));
    if (!arrays.emplace(key, parse_array(read_member(archive, index, stat.size))).second) {
      damaged("two members have one name");
    }
  }
  return arrays;
}

Arrays read_source(zip_source_t* source, std::uint64_t file_size) {
  zip_error_t error;
  zip_error_init(&error);
  if (source == nullptr) damaged("there is no memory for it");
  const Archive archive(zip_open_from_source(source, ZIP_RDONLY | ZIP_CHECKCONS, &error));
  if (archive == nullptr) {
    zip_source_free(source);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    damaged("it is no zip archive: " + reason);
  }
  return read_members(archive.get(), file_size);
}

std::string npy(const HostTensor& tensor) {
  const auto descr = std::find_if(kDescrs.begin(), kDescrs.end(),
                                  [&](const Descr& each) { return each.dtype == tensor.dtype; });
  if (descr == kDescrs.end()) throw Error(SANA_INTERNAL_ERROR, "An array has no dtype of numpy.");
  std::string shape;
  for (const auto dim : tensor.shape) shape += std::to_string(dim) + ", ";
  if (tensor.shape.size() > 1) shape.resize(shape.size() - 2);
  if (tensor.shape.size() == 1) shape.resize(shape.size() - 1);
  std::string header = concat("{'descr': '", descr->name, "', 'fortran_order': False, 'shape': (",
                              shape, "), }");
  constexpr std::size_t kAlignment = 64;
  const std::size_t prefix = kMagic.size() + 4;
  header.append(kAlignment - 1 - (prefix + header.size()) % kAlignment, ' ');
  header += '\n';
  std::string data(kMagic);
  data += {'\x01', '\x00', static_cast<char>(header.size() & 255U),
           static_cast<char>(header.size() >> 8U)};
  data += header;
  data.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  return data;
}

int system_error(zip_error_t* error) {
  const int number = zip_error_code_system(error);
  return number != 0 ? number : EIO;
}

void write_archive(const std::filesystem::path& path, const Arrays& arrays) {
  int code = 0;
  Archive archive(zip_open(path.c_str(), ZIP_CREATE | ZIP_EXCL, &code));
  if (archive == nullptr) throw_storage_error(path, errno != 0 ? errno : EIO);
  std::vector<std::string> members;  // must stay until the archive is closed
  members.reserve(arrays.size());
  for (const auto& [name, tensor] : arrays) {
    const auto& data = members.emplace_back(npy(tensor));
    zip_source_t* source = zip_source_buffer(archive.get(), data.data(), data.size(), 0);
    const auto index = zip_file_add(archive.get(), concat(name, kSuffix).c_str(), source,
                                    ZIP_FL_ENC_UTF_8);
    if (index < 0) {
      zip_source_free(source);
      throw_storage_error(path, system_error(zip_get_error(archive.get())));
    }
    zip_set_file_compression(archive.get(), static_cast<zip_uint64_t>(index), ZIP_CM_STORE, 0);
  }
  if (zip_close(archive.get()) != 0) {
    throw_storage_error(path, system_error(zip_get_error(archive.get())));
  }
  archive.release();  // closed, and gone
}

}  // namespace

HostTensor parse_array(std::string_view data) {
  Scanner scanner(data);
  if (!scanner.skip(kMagic)) damaged("it does not begin like an array of numpy");
  const auto version = scanner.take(2);
  if (version.empty() || version[0] < 1 || version[0] > 3) damaged("its version is unknown");
  const auto width = version[0] == 1 ? std::size_t{2} : std::size_t{4};
  const auto encoded = scanner.take(width);
  std::size_t length = 0;
  for (std::size_t i = encoded.size(); i-- > 0;) {
    length = length << 8U | static_cast<unsigned char>(encoded[i]);
  }
  if (encoded.size() < width || length > kMaxHeader || length > scanner.left().size()) {
    damaged("its header is too long");
  }
  auto tensor = parse_header(scanner.take(length));
  const auto values = scanner.left();
  std::size_t wanted = 0;
  try {
    wanted = num_bytes(tensor.dtype, tensor.shape);
  } catch (const Error&) {
    damaged("its shape is impossible");
  }
  if (wanted != values.size()) {
    damaged(concat("an array of shape ", listed(tensor.shape), " has ", wanted, " bytes, not ",
                   values.size()));
  }
  const auto* begin = reinterpret_cast<const std::byte*>(values.data());
  tensor.data.assign(begin, begin + values.size());
  return tensor;
}

Arrays read_arrays(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw_storage_error(path, error.value());
  return read_source(zip_source_file_create(path.c_str(), 0, 0, nullptr), size);
}

Arrays parse_arrays(std::string_view file) {
  return read_source(zip_source_buffer_create(file.data(), file.size(), 0, nullptr), file.size());
}

void write_arrays(const std::filesystem::path& path, const Arrays& arrays) {
  write_file(path, [&](const std::filesystem::path& partial) { write_archive(partial, arrays); });
}

}  // namespace sana_rt::runtime
