# ONNX Runtime's C API: headers and library, which may come from two places.
#
# ONNXRUNTIME_ROOT      a release as its project publishes it (include/, lib/), or a folder that
#                       Debian's libonnxruntime-dev was unpacked to: the headers.
# ONNXRUNTIME_LIBRARY   the library, if it is elsewhere: that of the onnxruntime wheel.
set(ONNXRUNTIME_ROOT "$ENV{ONNXRUNTIME_ROOT}" CACHE PATH "Where ONNX Runtime's headers are")
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h HINTS ${ONNXRUNTIME_ROOT}
          PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session
                        usr/include/onnxruntime onnxruntime)
if(NOT ONNXRUNTIME_LIBRARY)
  find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime libonnxruntime.so.1 HINTS ${ONNXRUNTIME_ROOT}
               PATH_SUFFIXES lib lib64)
endif()

if(ONNXRUNTIME_INCLUDE_DIR)
  file(STRINGS ${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h FOUND_LINE
       REGEX "^#define ORT_API_VERSION [0-9]+")
  string(REGEX MATCH "[0-9]+" ORT_API_VERSION "${FOUND_LINE}")
  set(OnnxRuntime_VERSION 1.${ORT_API_VERSION})
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime
  REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE_DIR VERSION_VAR OnnxRuntime_VERSION
  REASON_FAILURE_MESSAGE
  "say where with ONNXRUNTIME_ROOT and ONNXRUNTIME_LIBRARY, or let make native do it")

if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::OnnxRuntime)
  # Programs look for the library's soname, which a wheel has no file of.
  set(ONNXRUNTIME_LINK_DIR ${CMAKE_BINARY_DIR}/onnxruntime)
  file(MAKE_DIRECTORY ${ONNXRUNTIME_LINK_DIR})
  file(CREATE_LINK ${ONNXRUNTIME_LIBRARY} ${ONNXRUNTIME_LINK_DIR}/libonnxruntime.so.1 SYMBOLIC)
  add_library(OnnxRuntime::OnnxRuntime SHARED IMPORTED)
  set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES
    IMPORTED_LOCATION ${ONNXRUNTIME_LINK_DIR}/libonnxruntime.so.1
    IMPORTED_SONAME libonnxruntime.so.1
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR}
    INTERFACE_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR})
endif()
