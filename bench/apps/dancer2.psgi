# A small shop in Dancer2.
package Shop;

use strict;
use warnings;
use Dancer2;

set logger       => 'null';
set startup_info => 0;
set charset      => 'utf-8';

my %items = map { $_ => { id => $_, name => "item $_", price => $_ * 1.25 } } 1 .. 50;

get '/' => sub {
    my $name = query_parameters->get('name') // 'nobody';
    response_header 'X-Shop' => 'open';
    my @list = map { "<li>$items{$_}{name}: $items{$_}{price}</li>" } sort { $a <=> $b } keys %items;
    return "<html><body><h1>Hello $name</h1><ul>@list[0 .. 9]</ul></body></html>\n";
};
get '/item/:id' => sub {
    my $item = $items{ route_parameters->get('id') } or send_error('no such item', 404);
    content_type 'application/json';
    return to_json($item, { canonical => 1 });
};
post '/order' => sub { return 'ordered ' . body_parameters->get('id') };

Shop->to_app;
