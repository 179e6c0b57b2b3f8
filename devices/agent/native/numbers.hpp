// Numbers in what files and programs say, taken exactly: decimal digits, no binary fractions on the way.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace edgewatt {

std::string_view stripped(std::string_view text);  // without blanks and ends of lines around it

// The number that is all of `text` (stripped): an optional sign and digits. None if it is not, or does not fit.
std::optional<int64_t> integer_of(std::string_view text);

// The same with a fraction and an exponent too, times 10**decimals, rounded to the nearest integer (half to even).
std::optional<int64_t> scaled_integer_of(std::string_view text, int decimals);

// The `number`-th number in `text` (from 0; negative: from the end), empty if there are not so many. A number begins
// after anything but a letter, a digit, `_` or `.`: 5 in "T=5 W", none in "S4M".
std::string_view number_in(std::string_view text, int number);

// The rest of the first line that begins with `start`, leading blanks apart; none if no line does.
std::optional<std::string_view> rest_of_line(std::string_view text, std::string_view start);

}  // namespace edgewatt
